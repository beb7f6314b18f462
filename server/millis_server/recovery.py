"""Brings variants back whose process died, or whose Triton did.

To Triton a version whose process died is still ready, so it is unloaded before it is loaded. That is tried for ever:
but a variant that cannot be brought back holds up nothing else, and between two tries the repository is looked at: a
newer version, or a folder that is gone, ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable

from millis_server import selfcheck
from millis_server.catalogue import Catalogue, Served, State, Variant
from millis_server.errors import MillisError
from millis_server.version_loader import READY, VersionLoader

LOG = logging.getLogger("millis.recovery")

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 5.0
"""Seconds between two tries; the pause doubles with every try."""


class Recovery:
    """Keeps at it for each variant that lost its process.

    Args:
        versions: loads versions.
        catalogue: of which the variants are.
        locks: one for each folder; held by whoever changes its variant.
        look: brings one folder's variant in step with the repository; takes the lock itself.
    """

    def __init__(
        self,
        versions: VersionLoader,
        catalogue: Catalogue,
        locks: defaultdict[str, asyncio.Lock],
        look: Callable[[str], Awaitable[None]],
    ) -> None:
        self._versions = versions
        self._catalogue = catalogue
        self._locks = locks
        self._look = look
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, name: str) -> None:
        """Starts loading a variant anew, unless that is under way already or it does not answer anyway."""
        variant = self._catalogue.variants.get(name)
        if variant is None or variant.state is not State.READY:
            return
        variant.state = State.RECOVERING
        variant.reason = "its process died and is being started again"
        LOG.warning("%s: %s", name, variant.reason)
        self._catalogue.changed(variant.manifest.model)
        if (before := self._tasks.get(name)) is not None:
            # Ended, or about to: the variant came back without it.
            before.cancel()
        self._tasks[name] = asyncio.create_task(self._recover(name, variant))

    async def _recover(self, name: str, variant: Variant) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._try(name, variant)
                if variant.state is not State.RECOVERING:
                    return
                await asyncio.sleep(pause)
                await self._look(name)
            except Exception:  # whatever it was, the variant must not stay as it is for ever
                LOG.exception("%s: starting it again failed; it is tried again", name)
                await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _try(self, name: str, variant: Variant) -> None:
        async with self._locks[name]:
            served = variant.current
            if served is None or variant.state is not State.RECOVERING:
                return
            variant.standby = None
            try:
                problem = await self._load(name, served)
            except (MillisError, selfcheck.SelfCheckFailed) as error:
                problem = str(error)
            if problem:
                variant.reason = f"it could not be started again yet: {problem}"
                return
            variant.state = State.READY
            variant.reason = ""
            LOG.info("%s version %s is back", name, served.version)
            self._catalogue.changed(variant.manifest.model)

    async def _load(self, name: str, served: Served) -> str:
        """Loads and checks a version; returns why it cannot answer, empty when it can."""
        states = await self._versions.load_in_triton(name, [served.version], anew=True)
        if states[served.version] != READY:
            return states[served.version]
        await selfcheck.check(served)
        return ""
