import json

import numpy as np

from millis_server.tokenizer import Row
from millis_server.triton.connection import HttpResponse
from millis_server.triton.tensors import pack, unpack

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def read(body: bytes, header_length: int) -> dict[str, list[list[int]]]:
    """Reads a request as Triton does."""
    start = header_length
    tensors = {}
    for described in json.loads(body[:header_length])["inputs"]:
        end = start + described["parameters"]["binary_data_size"]
        assert described["datatype"] == "INT64"
        tensors[described["name"]] = np.frombuffer(body[start:end], np.int64).reshape(described["shape"]).tolist()
        start = end
    assert start == len(body)
    return tensors


def test_a_lone_text_is_one_tensor() -> None:
    assert read(*pack(INPUTS, 0, [Row([101, 7, 102])])) == {"input_ids": [[101, 7, 102]]}


def test_rows_of_one_length_need_no_mask() -> None:
    assert read(*pack(INPUTS, 0, [Row([1, 2]), Row([3, 4])])) == {"input_ids": [[1, 2], [3, 4]]}


def test_shorter_rows_are_filled_and_masked() -> None:
    assert read(*pack(INPUTS, 9, [Row([1, 2, 3]), Row([4])])) == {
        "input_ids": [[1, 2, 3], [4, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
    }


def test_pairs_carry_their_segments() -> None:
    assert read(*pack(INPUTS, 0, [Row([1, 2, 3], [0, 0, 1]), Row([4, 5], [0, 1])])) == {
        "input_ids": [[1, 2, 3], [4, 5, 0]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "token_type_ids": [[0, 0, 1], [0, 1, 0]],
    }


def test_a_graph_without_segments_is_sent_none() -> None:
    assert read(*pack(INPUTS[:2], 0, [Row([1, 2], [0, 1])])) == {"input_ids": [[1, 2]]}


def test_the_shape_of_an_answer_follows_from_what_was_asked() -> None:
    header = b'{"outputs":[]}'
    values = np.arange(12, dtype=np.float32)
    response = HttpResponse(200, len(header), header + values.tobytes())
    rows = [Row([1, 2]), Row([3])]
    for per_token, shape in ((False, (2, 6)), (True, (2, 2, 3))):
        output, padding, layers = unpack(response, rows, per_token)
        assert output.tolist() == values.reshape(shape).tolist()
        assert (padding, layers) == (None, None)


def test_padding_comes_after_the_output() -> None:
    header = b'{"outputs":[{"name":"logits"},{"name":"padding","datatype":"INT32","shape":[2,1]}]}'
    values = np.arange(4, dtype=np.float32)
    body = header + values.tobytes() + np.array([0, 3], np.int32).tobytes()
    rows = [Row([1, 2, 3, 4]), Row([5])]
    output, padding, layers = unpack(HttpResponse(200, len(header), body), rows, per_token=False)
    assert output.tolist() == [[0, 1], [2, 3]]
    assert padding is not None and padding.tolist() == [0, 3]
    assert layers is None


def test_layers_come_between_the_output_and_the_padding() -> None:
    plain = b'{"outputs":[{"name":"logits"},{"name":"layers","datatype":"INT32"}]}'
    padded = b'{"outputs":[{"name":"logits"},{"name":"layers"},{"name":"padding"}]}'
    values = np.arange(4, dtype=np.float32).tobytes() + np.array([2, 6], np.int32).tobytes()
    rows = [Row([1, 2, 3, 4]), Row([5])]
    for header, end, expected in ((plain, b"", None), (padded, np.array([0, 3], np.int32).tobytes(), [0, 3])):
        response = HttpResponse(200, len(header), header + values + end)
        output, padding, layers = unpack(response, rows, per_token=False, exits=True)
        assert output.tolist() == [[0, 1], [2, 3]]
        assert layers is not None and layers.tolist() == [2, 6]
        assert (padding is None and expected is None) or (padding is not None and padding.tolist() == expected)


def test_the_layers_of_a_lone_text_follow_its_output() -> None:
    header = b"{}"
    body = header + np.array([1.5, 2.5], np.float32).tobytes() + np.array([3], np.int32).tobytes()
    output, padding, layers = unpack(HttpResponse(200, len(header), body), [Row([1])], per_token=False, exits=True)
    assert output.tolist() == [[1.5, 2.5]]
    assert padding is None
    assert layers is not None and layers.tolist() == [3]
