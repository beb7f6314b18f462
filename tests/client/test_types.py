import math
import pickle
import struct
import sys
from typing import Any

import numpy as np
import pytest

import millis
from millis.testing import FakeGateway
from millis.v1 import inference_pb2 as pb
from tests.client.twins import AnyClient, maybe_await

INFO = millis.Info(millis.ServedBy("m", "1", "v", False, ""), millis.Usage(1, 2), None, "disabled", (), "")
OTHER = millis.Info(millis.ServedBy("n", "2", "w", True, ""), millis.Usage(3, 4), None, "hit", (0,), "x")

VECTORS = [
    ("float32", struct.pack("<3f", 0.5, -1.0, 2.0), 3, 0.0, (0.5, -1.0, 2.0)),
    ("float16", struct.pack("<3e", 0.5, -1.0, 2.0), 3, 0.0, (0.5, -1.0, 2.0)),
    ("int8", struct.pack("3b", 127, -128, 1), 3, 0.5, (63.5, -64.0, 0.5)),
    ("binary", b"\x00", 3, 0.0, (0.0, 0.0, 0.0)),
    ("binary", b"\xa5\x80", 9, 0.0, (1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0)),
]


@pytest.mark.parametrize(("encoding", "data", "dimensions", "scale", "values"), VECTORS)
def test_a_vector_is_unpacked_from_every_encoding(
    encoding: str, data: bytes, dimensions: int, scale: float, values: tuple[float, ...]
) -> None:
    vector = millis.Embedding(data, encoding, dimensions, scale, INFO)
    assert vector.values == values
    array = vector.numpy()
    assert (array.dtype, array.shape, array.tolist()) == (np.float32, (dimensions,), list(values))
    array[0] = 7.0  # it is the caller's own


def test_numpy_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    vector = millis.Embedding(struct.pack("<f", 1.0), "float32", 1, 0.0, INFO)
    assert vector.values == (1.0,)
    with pytest.raises(ModuleNotFoundError, match="numpy"):
        vector.numpy()


async def test_the_encodings_agree_over_the_wire(client: AnyClient) -> None:
    exact = (await maybe_await(client.embed("a text"))).values
    half = (await maybe_await(client.embed("a text", encoding="float16"))).values
    bytes_ = (await maybe_await(client.embed("a text", encoding="int8"))).values
    bits = (await maybe_await(client.embed("a text", encoding="binary"))).values
    assert math.isclose(math.hypot(*exact), 1.0, rel_tol=1e-6)
    assert half == pytest.approx(exact, abs=1e-3)
    assert bytes_ == pytest.approx(exact, abs=5e-3)
    assert bits == tuple(float(value > 0) for value in exact)


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (
            pb.EmbedTextResponse(
                results=[pb.Embedding(data=b"123")], dimensions=1, encoding="EMBEDDING_ENCODING_FLOAT32"
            ),
            "a vector of 3 bytes; 1 dimensions as float32 are 4",
        ),
        (
            pb.EmbedTextResponse(results=[pb.Embedding(data=b"1234")], dimensions=1),
            "vectors in the encoding unspecified, which this SDK does not know",
        ),
    ],
)
async def test_a_vector_that_cannot_be_unpacked_is_the_gateways_bug(
    client: AnyClient, gateway: FakeGateway, response: pb.EmbedTextResponse, message: str
) -> None:
    gateway.script("EmbedText", response)
    with pytest.raises(millis.InternalError) as caught:
        await maybe_await(client.embed("t"))
    assert str(caught.value) == f"the gateway answered {message}. This is a bug in the gateway."


async def test_a_rank_of_no_document_is_the_gateways_bug(client: AnyClient, gateway: FakeGateway) -> None:
    gateway.script("RankTexts", pb.RankTextsResponse(results=[pb.RankedText(index=5)]))
    with pytest.raises(millis.InternalError) as caught:
        await maybe_await(client.rank("q", ["d"]))
    assert str(caught.value) == "the gateway answered document 5 of 1. This is a bug in the gateway."


def test_results_are_equal_whoever_served_them() -> None:
    labels = (millis.Label("a", 0.5),)
    assert millis.Classification(labels, INFO) == millis.Classification(labels, OTHER)
    assert millis.Results((1, 2), INFO) == millis.Results((1, 2), OTHER)
    assert millis.Results((1, 2), INFO) != millis.Results((2, 1), INFO)


@pytest.mark.parametrize(
    "value",
    [
        millis.Results((millis.Classification((millis.Label("a", 0.5),), INFO),), INFO),
        millis.Ranking((millis.Ranked(0, 0.5, "d"),), INFO, "cosine"),
        millis.Embedding(b"\0\0\0\0", "float32", 1, 0.0, INFO),
    ],
)
def test_results_are_frozen_and_survive_pickling(value: Any) -> None:
    copy = pickle.loads(pickle.dumps(value))  # noqa: S301  # our own bytes
    assert (copy, copy.info) == (value, INFO)
    with pytest.raises(AttributeError):
        value.info = OTHER


def test_an_enum_of_a_newer_gateway_has_a_name() -> None:
    assert (millis._enums.TASKS.name(1), millis._enums.TASKS.name(99)) == ("text-classification", "unknown_99")
