"""Brings the repository's versions into service while traffic goes on.

Triton is told which versions of a variant to hold, and every request names the version it wants. So a new version
loads beside the old one, is warmed and answers its self-check; then one assignment moves traffic, and with it
tokenizer and labels. The version before stays loaded: deleting the new one moves traffic back in no time. A version
that fails at any step is refused and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from time import monotonic

from millis_server import repository
from millis_server.catalogue import Catalogue, State, Variant
from millis_server.config_changes import ConfigChanges
from millis_server.errors import LoadFailed, MillisError, ModelUnavailable
from millis_server.manifest_files import ManifestError, read_manifest
from millis_server.recovery import Recovery
from millis_server.settings import Settings
from millis_server.triton.client import TritonClient
from millis_server.triton.streams import TritonStreams
from millis_server.version_loader import READY, VersionLoader, VersionRefused, refusal_of

LOG = logging.getLogger("millis.reload")


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
        self._configs = ConfigChanges(settings, self._versions, catalogue)
        self._recovery = Recovery(self._versions, catalogue, self._locks, self._look)

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
        """Follows the repository once: new, changed and removed variants side by side.

        A variant that recovers is left to its recovery, which looks by itself and may take long.
        """
        found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
        variants = self._catalogue.variants
        names = found.keys() | variants.keys() | self._catalogue.unreadable.keys()
        idle = [name for name in names if name not in variants or variants[name].state is not State.RECOVERING]
        await asyncio.gather(*(self._keep_up(name, found.get(name, [])) for name in sorted(idle)))

    async def load_model(self, model: str) -> None:
        """Brings the newest good versions of a logical model into service, also of an unloaded one.

        Raises:
            ModelNotFound: the repository has no such model.
            LoadFailed: a variant has no version that could be brought into service, or its newest was refused.
            ModelUnavailable: Triton could not be asked to load a version, or a variant is not ready yet.
        """
        found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
        names = [name for name in found if self._belongs(name, found[name], model)]
        if not names:
            raise self._catalogue.not_found(model, f"the repository has no model {model!r}")
        for name in names:
            self._held_back.pop(name, None)
            if name in self._catalogue.variants:
                self._catalogue.variants[name].refused.clear()
        outcomes = await asyncio.gather(*(self._follow(name, found[name]) for name in names), return_exceptions=True)
        variants = {name: self._catalogue.variants[name] for name in names if name in self._catalogue.variants}
        refusals = [
            f"{name} version {refusal.version}: {refusal.reason}"
            for name, variant in variants.items()
            for refusal in variant.refused.values()
        ]
        if refusals:
            raise LoadFailed("; ".join(refusals))
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        for name, variant in variants.items():
            if variant.state is not State.READY:
                raise ModelUnavailable(f"{name} is {variant.state.value}: {variant.reason}")

    async def unload_model(self, model: str) -> None:
        """Takes a logical model out of service once requests under way are answered.

        Raises:
            ModelNotFound: there is no such model.
            BackendFault, ModelUnavailable: Triton could not drop a variant, which is out of service all the same.
        """
        self._catalogue.variants_of(model)
        failure: MillisError | None = None
        for name, variant in list(self._catalogue.variants.items()):
            if variant.manifest.model != model:
                continue
            async with self._locks[name]:
                found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
                self._held_back[name] = found.get(name, [])
                await self._take_out(variant, State.UNLOADED, "unloaded on request")
                try:
                    await self._client.unload(name)
                except MillisError as error:
                    failure = error
        if failure is not None:
            raise failure

    def recover(self, name: str) -> None:
        """Starts loading a variant anew whose process died, unless that is under way already."""
        self._recovery.begin(name)

    def recover_all(self) -> None:
        """Starts loading everything anew, after Triton itself was started again."""
        for name in list(self._catalogue.variants):
            self._recovery.begin(name)

    async def _look(self, name: str) -> None:
        """Follows one variant."""
        found = await asyncio.to_thread(repository.scan, self._settings.model_repository)
        await self._keep_up(name, found.get(name, []))

    async def _keep_up(self, name: str, versions: list[str]) -> None:
        """As `_follow`, but what Triton says against it is only logged: the next look tries again."""
        try:
            await self._follow(name, versions)
        except MillisError as error:
            LOG.warning("%s: %s", name, error)

    async def _follow(self, name: str, versions: list[str]) -> None:
        """Brings one variant to the newest good one of `versions` (newest first).

        Raises:
            ModelUnavailable: Triton could not be asked, which says nothing about the versions.
            BackendFault: Triton failed at something else than loading one.
        """
        async with self._locks[name]:
            if self._held_back.get(name) == versions:
                return
            self._held_back.pop(name, None)
            self._catalogue.unreadable.pop(name, None)
            variant = self._catalogue.variants.get(name)
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
            if variant.state is not State.RECOVERING:  # else with the first look after it
                await self._configs.follow(name, variant)
            await self._bring_newest(name, variant, versions)

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
                variant.refused[version] = refusal_of(version, error, refusal)
                self._catalogue.changed(variant.manifest.model)
            except ModelUnavailable as error:
                if variant.current is None:
                    variant.reason = f"version {version} is not loaded yet: {error}"
                raise
        serving = variant.current is not None and variant.current.version in versions
        if not serving and variant.state is not State.FAILED:
            await self._take_out(variant, State.FAILED, "no version of it could be brought into service")

    async def _bring(self, name: str, variant: Variant, version: str) -> None:
        """Moves traffic to `version`: the standby at once, any other once it is loaded, warmed and checked."""
        old = variant.current
        dead = variant.state is State.RECOVERING
        beside = [] if dead or old is None else [old.version]
        if variant.standby is not None and variant.standby.version == version:
            served, variant.standby = variant.standby, None
        else:
            try:
                served = await self._versions.load(name, version, beside, anew=dead)
            except VersionRefused as error:
                if error.loaded:
                    await self._settle(name, variant)
                raise
        variant.manifest = served.manifest
        variant.current = served
        variant.state = State.READY
        variant.reason = ""
        LOG.info("%s version %s takes traffic", name, version)
        self._catalogue.changed(served.manifest.model)
        if old is not None:
            await old.lane.drain()
            if dead:
                variant.standby = None
            elif int(old.version) < int(version):
                variant.standby = old
            else:
                # The newer version was deleted.
                await self._settle(name, variant)

    async def _settle(self, name: str, variant: Variant) -> None:
        """Has Triton hold what answers and nothing else. What goes wrong is only logged: what answers goes on."""
        try:
            if not variant.loaded:
                await self._client.unload(name)
                return
            states = await self._versions.load_in_triton(name, [served.version for served in variant.loaded])
        except MillisError as error:
            LOG.warning("%s: %s", name, error)
            return
        if variant.standby is not None and states[variant.standby.version] != READY:
            variant.standby = None

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
        self._catalogue.unreadable[name] = "; ".join(problems)
        LOG.error("ignored %s: %s", name, self._catalogue.unreadable[name])
        self._held_back[name] = versions
        return None

    async def _remove(self, name: str, variant: Variant) -> None:
        del self._catalogue.variants[name]
        await self._take_out(variant, State.UNLOADED, "removed from the repository")
        LOG.info("%s was removed from the repository", name)
        await self._client.unload(name)

    async def _take_out(self, variant: Variant, state: State, reason: str) -> None:
        """Ends traffic to a variant and waits for the requests under way."""
        for served in self._catalogue.retire(variant, state, reason):
            await served.lane.drain()

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
