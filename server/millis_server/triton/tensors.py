"""Packs rows of tokens into an inference request, and unpacks the answer.

The form is the KServe v2 protocol with Triton's binary tensor extension: a JSON header, then the bytes of the
tensors.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from millis_server.manifest import TensorName
from millis_server.tokenizer import Row
from millis_server.triton.connection import HttpResponse

PADDING = b'"name":"padding"'
"""How the JSON part names the backend's last output, INT32 [rows, 1]."""


class Unpacked(NamedTuple):
    """An answer of Triton."""

    output: NDArray[np.float32]
    padding: NDArray[np.int32] | None
    """Tokens computed beside those of each row, [rows]; None when nothing was padded."""
    layers: NDArray[np.int32] | None
    """Layers that each row went through, [rows]; None for a model without early exits."""


_ZERO, _ONE = array("q", (0,)), array("q", (1,))


def pack(inputs: Sequence[TensorName], pad_id: int, rows: Sequence[Row]) -> tuple[bytes, int]:
    """Packs rows, padded on the right to the longest, as INT64 tensors [rows, tokens].

    A tensor that would say nothing is left out, and the backend fills it in: `attention_mask` when no row is
    padded, `token_type_ids` when all are zeros. A lone text is then one tensor on the wire and not three.

    Args:
        inputs: tensors that the graph takes.
        pad_id: token id that fills shorter rows.
        rows: at least one.

    Returns:
        The body, and the length of its JSON part.
    """
    lengths = [len(row.ids) for row in rows]
    width = max(lengths)
    sent = [
        name
        for name in inputs
        if name == "input_ids"
        or (name == "attention_mask" and min(lengths) < width)
        or (name == "token_type_ids" and any(row.type_ids for row in rows))
    ]
    tensors = [_tensor(name, pad_id, rows, width) for name in sent]
    size = 8 * width * len(rows)
    described = ",".join(
        [
            f'{{"name":"{name}","shape":[{len(rows)},{width}],"datatype":"INT64",'
            f'"parameters":{{"binary_data_size":{size}}}}}'
            for name in sent
        ]
    )
    header = f'{{"inputs":[{described}],"parameters":{{"binary_data_output":true}}}}'.encode()
    return b"".join([header, *tensors]), len(header)


def unpack(response: HttpResponse, rows: Sequence[Row], per_token: bool, exits: bool = False) -> Unpacked:
    """Returns what an answer holds: read-only views of its bytes.

    Their shapes follow from what was asked, so that the JSON part need not be parsed.

    Args:
        response: of Triton.
        rows: what was asked.
        per_token: whether the output is [rows, tokens, values], or else [rows, values].
        exits: whether the model has early exits.
    """
    body, start = response.body, response.header_length
    padding = layers = None
    end = len(body)
    # The backend sends `padding` last, and only where there is some; a lone row never has.
    if len(rows) > 1 and body.find(PADDING, 0, start) >= 0:
        end -= 4 * len(rows)
        padding = np.frombuffer(body, np.int32, offset=end)
    if exits:
        end -= 4 * len(rows)
        layers = np.frombuffer(body, np.int32, len(rows), end)
    values = np.frombuffer(body, np.float32, (end - start) // 4, start)
    if per_token:
        return Unpacked(values.reshape(len(rows), max([len(row.ids) for row in rows]), -1), padding, layers)
    return Unpacked(values.reshape(len(rows), -1), padding, layers)


def _tensor(name: TensorName, pad_id: int, rows: Sequence[Row], width: int) -> bytes:
    """One tensor's bytes. What is constant is copied from arrays: number by number it costs as much as the ids."""
    values = array("q")
    fill = array("q", (pad_id,)) if name == "input_ids" else _ZERO
    for row in rows:
        length = len(row.ids)
        if name == "input_ids":
            values.extend(row.ids)
        elif name == "attention_mask":
            values.extend(_ONE * length)
        else:
            values.extend(row.type_ids or _ZERO * length)
        if length < width:
            values.extend(fill * (width - length))
    return values.tobytes()
