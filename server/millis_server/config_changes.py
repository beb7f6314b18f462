"""Follows a config.pbtxt that changes, as `millis tune --apply` changes it, while traffic goes on.

Triton loads the variant anew and answers with the old processes until the new ones are ready. The lanes are made anew
to fit.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from millis_server import repository, selfcheck
from millis_server.catalogue import Catalogue, State, Variant
from millis_server.errors import MillisError, ModelUnavailable
from millis_server.settings import Settings
from millis_server.version_loader import VersionLoader, VersionRefused

LOG = logging.getLogger("millis.reload")


class ConfigChanges:
    """Brings variants in step with their configs.

    Args:
        settings: of the gateway.
        versions: loads versions.
        catalogue: of which the variants are.
    """

    def __init__(self, settings: Settings, versions: VersionLoader, catalogue: Catalogue) -> None:
        self._settings = settings
        self._versions = versions
        self._catalogue = catalogue

    async def follow(self, name: str, variant: Variant) -> None:
        """Has Triton take a changed config.pbtxt. One that it refuses changes nothing, and `reason` says why."""
        stamp = await asyncio.to_thread(repository.config_stamp, self._settings.model_repository / name)
        before, variant.config_stamp = variant.config_stamp, stamp
        if before in (None, stamp):
            return
        # What was refused may do with another config.
        variant.refused.clear()
        if not variant.loaded:
            return
        variant.reason = ""
        try:
            await self._versions.hold(name, [served.version for served in variant.loaded])
        except ModelUnavailable as error:
            LOG.warning("%s: %s", name, error)
            variant.config_stamp = before
            return
        except MillisError as error:
            LOG.error("%s: its changed config.pbtxt was refused: %s", name, error)
            variant.reason = f"its changed config.pbtxt was refused: {error}"
        await self._renew_lanes(name, variant)
        self._catalogue.changed(variant.manifest.model)

    async def _renew_lanes(self, name: str, variant: Variant) -> None:
        """Gives the loaded versions lanes that fit the config they run with now, once they pass their self-check."""
        leaving = variant.loaded
        try:
            renewed = [replace(old, lane=await self._versions.lane(old.manifest, old.version)) for old in leaving]
            for served in renewed:
                await selfcheck.check(served)
        except (VersionRefused, selfcheck.SelfCheckFailed, MillisError) as error:
            # Triton has the new config already. What answers wrongly must not answer: it comes back when the file
            # is mended.
            LOG.error("%s: with its changed config.pbtxt: %s", name, error)
            leaving = self._catalogue.retire(variant, State.FAILED, f"with its changed config.pbtxt: {error}")
        else:
            variant.current, variant.standby = renewed[0], (renewed[1] if len(renewed) > 1 else None)
            LOG.info("%s runs with its changed config.pbtxt", name)
        for served in leaving:
            await served.lane.drain()
