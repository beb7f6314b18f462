"""WatchModels, called without gRPC: only so is it known what has been sent when a model goes."""

from millis.v1 import models_pb2 as pb
from millis_server.answering import Around
from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue, State, Variant
from millis_server.model_service import ModelService
from millis_server.observability.metrics import Metrics
from tests.server.test_manifest import manifest


async def test_a_model_that_goes_while_the_first_ones_are_sent_does_not_end_the_watch():
    catalogue = Catalogue()
    for model in ("embed", "intent", "ner"):
        catalogue.variants[f"{model}-int8"] = Variant(manifest(model=model), State.UNLOADED)
    service = ModelService(catalogue, None, Around(Metrics(catalogue, AnswerCache(0), [], lambda: 0)))
    watch = service.WatchModels(pb.WatchModelsRequest(), None)
    sent = [await anext(watch)]
    del catalogue.variants["intent-int8"]
    catalogue.changed("intent")
    sent += [await anext(watch) for _ in range(3)]
    await watch.aclose()
    assert [(each.name, each.HasField("model")) for each in sent] == [
        ("embed", True),
        ("intent", False),
        ("ner", True),
        ("intent", False),
    ]
