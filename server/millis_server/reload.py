"""Brings the repository's versions into service while traffic goes on.

Triton keeps the two newest versions of a variant loaded (`version_policy` in its config), and every request names
the version it wants. So a new version loads beside the old one, is warmed and answers its self-check; then one
assignment moves traffic, and with it tokenizer and labels. The version before stays loaded: deleting the new one
moves traffic back in no time. A version that fails at any step is refused and changes nothing.

A config.pbtxt that changes, as `millis tune --apply` changes it, is followed the same way: Triton loads the variant
anew and answers with the old processes until the new ones are ready.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from math import inf
from time import monotonic

from millis_server import repository, selfcheck
from millis_server.catalogue import Catalogue, Refusal, State, Variant
from millis_server.errors import LoadFailed, MillisError, ModelNotFound, ModelUnavailable
from millis_server.manifest_files import ManifestError, read_manifest
from millis_server.settings import Settings
from millis_server.triton.client import TritonClient
from millis_server.triton.streams import TritonStreams
from millis_server.version_loader import READY, VersionLoader, VersionRefused

LOG = logging.getLogger("millis.reload")

RETRY_SECONDS = 5.0
"""When a version is tried again that was refused for a reason that may pass; the pause doubles with every try."""

LONGEST_RETRY_SECONDS = 600.0


class Reloader:
    """Keeps the catalogue in step with the repository.

    Args:
        settings: of the gateway.
        client: connection to Triton.
        streams: channel to Triton for models that generate.
        catalogue: what is changed.
    """

    def __init__(self, settings: Settings, client: TritonClient, streams: TritonStreams, catalogue: Catalogue) -> None:
        self._settings = settings
        self._client = client
        self._versions = VersionLoader(settings, client, streams)
        self._catalogue = catalogue
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._held_back: dict[str, list[str]] = {}
        """Versions present when a folder was unloaded on request, or found unreadable: it is left alone until
        they change."""
        self._recoveries: dict[str, asyncio.Task[None]] = {}

    async def watch(self) -> None:
        """Looks at the repository for ever, and follows it."""
        while True:
            await asyncio.sleep(self._settings.repository_poll_seconds)
            try:
                await self.sync()
            except repository.RepositoryError as error:
                LOG.warning("%s", error)
            except Exception:  # the watch must outlive anything that a broken repository can cause
                LOG.exception("following the repository failed; it is tried again")

    async def sync(self) -> None:
        """Follows the repository once: new, changed and removed variants side by side."""
        found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
        names = sorted(found.keys() | self._catalogue.variants.keys())
        await asyncio.gather(*(self._follow(name, found.get(name, [])) for name in names))

    async def load_model(self, model: str) -> None:
        """Brings the newest good versions of a logical model into service, also of an unloaded one.

        Raises:
            ModelNotFound: the repository has no such model.
            LoadFailed: a variant has no version that could be brought into service, or its newest was refused.
        """
        found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
        names = [name for name in found if self._belongs(name, found[name], model)]
        if not names:
            known = ", ".join(self._catalogue.models()) or "none"
            raise ModelNotFound("model", model, f"the repository has no model {model!r}; models are: {known}")
        for name in names:
            self._held_back.pop(name, None)
            if name in self._catalogue.variants:
                self._catalogue.variants[name].refused.clear()
        await asyncio.gather(*(self._follow(name, found[name]) for name in names))
        refusals = [
            f"{name} version {refusal.version}: {refusal.reason}"
            for name in names
            for refusal in self._catalogue.variants[name].refused.values()
        ]
        if refusals:
            raise LoadFailed("; ".join(refusals))

    async def unload_model(self, model: str) -> None:
        """Takes a logical model out of service once requests under way are answered.

        Raises:
            ModelNotFound: there is no such model.
        """
        self._catalogue.variants_of(model)
        for name, variant in list(self._catalogue.variants.items()):
            if variant.manifest.model != model:
                continue
            async with self._locks[name]:
                found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
                self._held_back[name] = found.get(name, [])
                await self._take_out(variant, State.UNLOADED, "unloaded on request")
                await self._client.unload(name)
                self._catalogue.changed(model)

    def recover(self, name: str) -> None:
        """Starts loading a variant anew whose process died, unless that is under way already."""
        variant = self._catalogue.variants.get(name)
        if variant is None or name in self._recoveries or variant.state is not State.READY:
            return
        variant.state = State.RECOVERING
        variant.reason = "its process died and is being started again"
        self._catalogue.changed(variant.manifest.model)
        task = asyncio.create_task(self._recover(name, variant))
        self._recoveries[name] = task
        task.add_done_callback(lambda _: self._recoveries.pop(name, None))

    async def recover_all(self) -> None:
        """Loads everything anew, after Triton itself was started again."""
        for name in list(self._catalogue.variants):
            self.recover(name)
        await asyncio.gather(*self._recoveries.values())

    async def _follow(self, name: str, versions: list[str]) -> None:
        """Brings one variant to the newest good one of `versions` (newest first)."""
        async with self._locks[name]:
            variant = self._catalogue.variants.get(name)
            if variant is not None and variant.state is State.RECOVERING:
                return
            if self._held_back.get(name) == versions:
                return
            self._held_back.pop(name, None)
            if not versions:
                if variant is not None:
                    await self._remove(name, variant)
                return
            if variant is None:
                variant = await self._discover(name, versions)
                if variant is None:
                    return
            for gone in variant.refused.keys() - set(versions):
                del variant.refused[gone]
            await self._follow_config(name, variant)
            await self._bring_newest(name, variant, versions)

    async def _follow_config(self, name: str, variant: Variant) -> None:
        """Has Triton take a changed config.pbtxt. One that it refuses changes nothing, and `reason` says why."""
        stamp = await asyncio.to_thread(repository.config_stamp, self._settings.model_repository / name)
        before, variant.config_stamp = variant.config_stamp, stamp
        if before in (None, stamp):
            return
        # What was refused may do with another config.
        variant.refused.clear()
        if variant.current is None:
            return
        variant.reason = ""
        try:
            await self._client.load(name)
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
        leaving = [served for served in (variant.current, variant.standby) if served is not None]
        try:
            renewed = [replace(old, lane=await self._versions.lane(old.manifest, old.version)) for old in leaving]
            for served in renewed:
                await selfcheck.check(served)
        except (VersionRefused, selfcheck.SelfCheckFailed, MillisError) as error:
            # Triton has the new config already. What answers wrongly must not answer: it comes back when the file
            # is mended.
            LOG.error("%s: with its changed config.pbtxt: %s", name, error)
            await self._take_out(variant, State.FAILED, f"with its changed config.pbtxt: {error}")
            return
        variant.current, variant.standby = renewed[0], (renewed[1] if len(renewed) > 1 else None)
        LOG.info("%s runs with its changed config.pbtxt", name)
        for served in leaving:
            await served.lane.drain()

    async def _bring_newest(self, name: str, variant: Variant, versions: list[str]) -> None:
        for version in versions:
            if variant.current is not None and variant.current.version == version:
                break
            refusal = variant.refused.get(version)
            if refusal is not None and monotonic() < refusal.again:
                continue
            try:
                await self._bring(name, variant, version)
                variant.refused.pop(version, None)
                break
            except VersionRefused as error:
                LOG.error("refused %s version %s: %s", name, version, error)
                variant.refused[version] = _refusal(version, error, refusal)
                self._catalogue.changed(variant.manifest.model)
            except ModelUnavailable as error:
                # Triton is away, which says nothing about the version: the next look tries again.
                LOG.warning("%s version %s: %s", name, version, error)
                return
        serving = variant.current is not None and variant.current.version in versions
        if not serving and variant.state is not State.FAILED:
            await self._take_out(variant, State.FAILED, "no version of it could be brought into service")
            self._catalogue.changed(variant.manifest.model)

    async def _bring(self, name: str, variant: Variant, version: str) -> None:
        """Moves traffic to `version`: the standby at once, any other once it is loaded, warmed and checked."""
        old = variant.current
        if variant.standby is not None and variant.standby.version == version:
            served, variant.standby = variant.standby, None
        else:
            served = await self._versions.load(name, version)
        variant.manifest = served.manifest
        variant.current = served
        variant.state = State.READY
        variant.reason = ""
        LOG.info("%s version %s takes traffic", name, version)
        self._catalogue.changed(served.manifest.model)
        if old is not None:
            await old.lane.drain()
            if int(old.version) < int(version):
                variant.standby = old
            else:
                # The newer version was deleted: let Triton drop it and load the one before as the new standby.
                await self._client.load(name)

    async def _discover(self, name: str, versions: list[str]) -> Variant | None:
        """Enters a new folder into the catalogue, with the newest manifest that can be read."""
        problems = []
        for version in versions:
            try:
                manifest = await asyncio.to_thread(read_manifest, self._settings.model_repository / name / version)
            except ManifestError as error:
                problems.append(str(error))
                continue
            variant = Variant(manifest)
            self._catalogue.variants[name] = variant
            self._catalogue.changed(manifest.model)
            return variant
        LOG.error("ignored %s: %s", name, "; ".join(problems))
        self._held_back[name] = versions
        return None

    async def _remove(self, name: str, variant: Variant) -> None:
        del self._catalogue.variants[name]
        await self._take_out(variant, State.UNLOADED, "removed from the repository")
        await self._client.unload(name)
        LOG.info("%s was removed from the repository", name)
        self._catalogue.changed(variant.manifest.model)

    async def _take_out(self, variant: Variant, state: State, reason: str) -> None:
        """Ends traffic to a variant and waits for the requests under way."""
        leaving = [served for served in (variant.current, variant.standby) if served is not None]
        variant.current = variant.standby = None
        variant.state = state
        variant.reason = reason
        for served in leaving:
            await served.lane.drain()

    async def _recover(self, name: str, variant: Variant) -> None:
        """Loads a variant anew. A plain load would change nothing: to Triton the dead version is still ready."""
        LOG.warning("%s: %s", name, variant.reason)
        async with self._locks[name]:
            pause = 0.2
            while (served := variant.current) is not None:
                try:
                    await self._client.unload(name)
                    variant.standby = None
                    state = await self._versions.load_in_triton(name, served.version)
                    if state == READY:
                        await selfcheck.check(served)
                        variant.state = State.READY
                        variant.reason = ""
                        LOG.info("%s version %s is back", name, served.version)
                        self._catalogue.changed(variant.manifest.model)
                        return
                    variant.reason = state
                except (MillisError, selfcheck.SelfCheckFailed) as error:
                    variant.reason = f"it could not be started again yet: {error}"
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5.0)

    def _belongs(self, name: str, versions: list[str], model: str) -> bool:
        """Whether a folder belongs to a logical model, by what is known or by its newest readable manifest."""
        if name in self._catalogue.variants:
            return self._catalogue.variants[name].manifest.model == model
        for version in versions:
            try:
                return read_manifest(self._settings.model_repository / name / version).model == model
            except ManifestError:
                continue
        return False


def _refusal(version: str, error: VersionRefused, before: Refusal | None) -> Refusal:
    """A machine too busy to start a process in time is no fault of the version: it is tried again, ever more seldom."""
    tries = before.tries + 1 if before is not None else 1
    pause = min(RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
    again = monotonic() + pause if error.passing else inf
    return Refusal(version, str(error), datetime.now(UTC), tries, again)
