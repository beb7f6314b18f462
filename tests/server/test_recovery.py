"""What recovery does with errors that it does not know: a bug cannot be caused otherwise."""

import asyncio
from collections import defaultdict

from millis_server import recovery, selfcheck
from millis_server.catalogue import Catalogue, State
from millis_server.recovery import Recovery
from tests.server.test_routing import variant


class BrokenLoader:
    def __init__(self) -> None:
        self.outcomes: list[object] = [KeyError("a bug"), "no memory", "READY"]
        self.reasons: list[str] = []

    async def load_in_triton(self, name: str, versions: list[str], *, anew: bool) -> dict[str, str]:
        assert (name, versions, anew) == ("intent-light", ["1"], True)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return {"1": str(outcome)}


async def test_a_variant_comes_back_whatever_went_wrong_before(monkeypatch, caplog):
    async def passed(_served: object) -> None:
        pass

    monkeypatch.setattr(selfcheck, "check", passed)
    monkeypatch.setattr(recovery, "FIRST_PAUSE", 0.001)
    light, catalogue, seen = variant("light", 0.9, 1.0), Catalogue(), []

    async def look(name: str) -> None:
        seen.append((name, light.state, light.reason))

    catalogue.variants["intent-light"] = light
    recovering = Recovery(BrokenLoader(), catalogue, defaultdict(asyncio.Lock), look)
    with catalogue.watch() as changes:
        recovering.begin("intent-light")
        recovering.begin("intent-light")
        assert light.state is State.RECOVERING
        told = [await asyncio.wait_for(changes.get(), 5) for _ in range(2)]
    assert (light.state, light.reason, told) == (State.READY, "", ["intent", "intent"])
    assert seen == [("intent-light", State.RECOVERING, "it could not be started again yet: no memory")]
    logged = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert logged == ["intent-light: starting it again failed; it is tried again"]
