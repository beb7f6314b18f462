"""What is around every RPC, in a real gRPC server whose path breaks: a bug cannot be caused otherwise."""

import grpc
import grpc.aio
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from millis.v1 import inference_pb2 as pb
from millis.v1 import inference_pb2_grpc
from millis_server.answering import Around
from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue, Variant
from millis_server.errors import Overloaded
from millis_server.observability.metrics import Metrics
from millis_server.prediction import Predictor
from millis_server.requests import RequestReader
from millis_server.service import InferenceService
from tests.server.test_manifest import manifest


class BrokenPath:
    def __init__(self) -> None:
        self.error: Exception = KeyError("a bug")

    async def run(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyError("a bug"), grpc.StatusCode.INTERNAL, "This is a bug; the gateway's log says more."),
        (Overloaded("full"), grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
    ],
)
async def test_what_breaks_ends_with_a_status_and_is_counted_once(error, code, message, caplog):
    path, catalogue = BrokenPath(), Catalogue()
    path.error = error
    catalogue.variants["intent-int8"] = Variant(manifest())
    metrics = Metrics(catalogue, AnswerCache(0), [], lambda: 0)
    server = grpc.aio.server()
    service = InferenceService(path, None, catalogue, RequestReader(10, 100), Predictor(), Around(metrics))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ClassifyText(pb.ClassifyTextRequest(model="intent", texts=["fox"]))
    await server.stop(None)
    assert (caught.value.code(), caught.value.details()) == (code, message)
    assert counted(metrics) == [({"rpc": "ClassifyText", "model": "intent", "variant": "", "code": code.name}, 1.0)]
    logged = ["ClassifyText failed; request id ''"] if code is grpc.StatusCode.INTERNAL else []
    assert [record.getMessage() for record in caplog.records if record.name == "millis.service"] == logged


def counted(metrics: Metrics) -> list[tuple[dict[str, str], float]]:
    families = text_string_to_metric_families(generate_latest(metrics.registry).decode())
    return [
        (sample.labels, sample.value)
        for family in families
        for sample in family.samples
        if sample.name == "millis_requests_total"
    ]
