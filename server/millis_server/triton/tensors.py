"""Packs rows of tokens into a Triton request, and unpacks Triton's answer.

Only the bytes of the KServe v2 protocol are handled here, on the messages that tritonclient generates: encoding
a request this way takes a third of the time of tritonclient's own objects, and gives the same bytes.
"""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from millis_server.manifest import TensorName
from millis_server.tokenizer import Row


def pack(
    model: str, version: str, inputs: Sequence[TensorName], pad_id: int, rows: Sequence[Row]
) -> service_pb2.ModelInferRequest:
    """Packs rows, padded on the right to the longest, as INT64 tensors [rows, tokens].

    Args:
        model: Triton's model name.
        version: version that must answer.
        inputs: tensors that the graph takes.
        pad_id: token id that fills shorter rows.
        rows: at least one.
    """
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    width = max([len(row.ids) for row in rows])
    for name in inputs:
        request.inputs.add(name=name, datatype="INT64", shape=(len(rows), width))
        values = array("q")
        for row in rows:
            gap = width - len(row.ids)
            if name == "input_ids":
                values.extend(row.ids)
                fill = pad_id
            elif name == "attention_mask":
                values.extend((1,) * len(row.ids))
                fill = 0
            else:
                values.extend(row.type_ids or (0,) * len(row.ids))
                fill = 0
            if gap:
                values.extend((fill,) * gap)
        request.raw_input_contents.append(values.tobytes())
    return request


def unpack(response: service_pb2.ModelInferResponse) -> NDArray[np.float32]:
    """Returns the only output of a response, a read-only view of its bytes."""
    shape = tuple(response.outputs[0].shape)
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(shape)
