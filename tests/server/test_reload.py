"""Loading and unloading while Triton is away: what is refused, and what everybody is told all the same."""

from __future__ import annotations

import json
import shutil
from asyncio import Queue
from collections.abc import Iterator
from pathlib import Path

import pytest

from millis_server import version_loader
from millis_server.catalogue import Catalogue, State
from millis_server.errors import ModelNotFound, ModelUnavailable
from millis_server.reload import Reloader
from millis_server.settings import Settings
from millis_server.triton.client import TritonClient
from millis_server.triton.streams import TritonStreams

NOWHERE = "127.0.0.1:1"
INTENT = ("intent-fp32", "intent-int8")


class Offline:
    """A reloader of two variants whose Triton is away."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.catalogue = Catalogue()
        client = TritonClient(NOWHERE, infer_timeout=1, load_timeout=1)
        settings = Settings(model_repository=repository)
        self.reloader = Reloader(settings, client, TritonStreams(NOWHERE), self.catalogue)

    def states(self) -> dict[str, State]:
        return {name: variant.state for name, variant in self.catalogue.variants.items()}


@pytest.fixture
def offline(published, tmp_path) -> Offline:
    for variant in INTENT:
        shutil.copytree(published.repository / variant, tmp_path / "repository" / variant)
    return Offline(tmp_path / "repository")


@pytest.fixture
def changes(offline) -> Iterator[Queue[str]]:
    with offline.catalogue.watch() as queue:
        yield queue


def taken(changes: Queue[str]) -> list[str]:
    return [changes.get_nowait() for _ in range(changes.qsize())]


async def test_loading_a_model_while_triton_is_away_is_refused_and_the_reason_is_kept(offline):
    with pytest.raises(ModelUnavailable, match="Triton does not answer"):
        await offline.reloader.load_model("intent")
    assert offline.states() == dict.fromkeys(INTENT, State.LOADING)
    reasons = [variant.reason for variant in offline.catalogue.variants.values()]
    assert all(reason.startswith("version 1 is not loaded yet: Triton does not answer") for reason in reasons)


async def test_a_model_that_triton_cannot_unload_is_out_of_service_and_watchers_are_told(offline, changes):
    await offline.reloader.sync()
    taken(changes)
    with pytest.raises(ModelUnavailable):
        await offline.reloader.unload_model("intent")
    assert (offline.states(), taken(changes)) == (dict.fromkeys(INTENT, State.UNLOADED), ["intent", "intent"])


async def test_a_removed_model_that_triton_cannot_unload_is_gone_and_watchers_are_told(offline, changes):
    await offline.reloader.sync()
    taken(changes)
    for variant in INTENT:
        shutil.rmtree(offline.repository / variant)
    await offline.reloader.sync()
    assert (offline.states(), taken(changes)) == ({}, ["intent", "intent"])


async def test_a_model_whose_manifests_cannot_be_read_is_missing_with_the_reason(offline):
    manifest = offline.repository / "intent-int8" / "1" / "manifest.json"
    manifest.write_text("{")
    shutil.rmtree(offline.repository / "intent-fp32")
    await offline.reloader.sync()
    with pytest.raises(ModelNotFound) as caught:
        offline.catalogue.variants_of("intent")
    begins = f"no model 'intent'; models are: none; ignored intent-int8: {manifest}: manifest: Invalid JSON"
    assert str(caught.value).startswith(begins)
    with pytest.raises(ModelNotFound, match=r"the repository has no model 'intent'; .* ignored intent-int8: "):
        await offline.reloader.load_model("intent")
    shutil.rmtree(offline.repository / "intent-int8")
    await offline.reloader.sync()
    with pytest.raises(ModelNotFound) as caught:
        offline.catalogue.variants_of("intent")
    assert str(caught.value) == "no model 'intent'; models are: none"


@pytest.mark.parametrize(("bits", "warned"), [(8, ["intent-int8 1"]), (7, [])])
async def test_weights_of_8_bits_on_a_processor_that_saturates_are_told(offline, monkeypatch, caplog, bits, warned):
    monkeypatch.setattr(version_loader, "saturates", lambda: True)
    path = offline.repository / "intent-int8" / "1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weight_bits": bits}))
    await offline.reloader.sync()
    said = [message.partition(":")[0] for message in caplog.messages if "quantized with 8-bit weights" in message]
    assert said == warned
