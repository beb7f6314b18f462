"""Turns one version of a variant in the repository into one that can answer: loaded, warmed and checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from time import monotonic

from millis_server import selfcheck
from millis_server.catalogue import Refusal, Served
from millis_server.errors import MillisError, ModelUnavailable
from millis_server.manifest import TOKENIZER_FILE, Manifest
from millis_server.manifest_files import ManifestError, read_manifest, verify_files
from millis_server.processor import saturates
from millis_server.settings import MAX_LANES, Settings
from millis_server.tokenizer import Tokenizer
from millis_server.triton.client import TritonClient
from millis_server.triton.lane import Lane
from millis_server.triton.model_config import config_for
from millis_server.triton.streams import Streams, TritonStreams

LOG = logging.getLogger("millis.reload")

READY = "READY"
"""What Triton says of a version that can answer."""

RETRY_SECONDS = 5.0
"""When a version is tried again that was refused for a reason that may pass; the pause doubles with every try."""

LONGEST_RETRY_SECONDS = 600.0


class VersionRefused(Exception):
    """A version that cannot be brought into service; the message is the reason.

    Args:
        reason: in plain English.
        passing: whether it may be the machine's fault and not the version's, so that it is worth another try.
        loaded: whether Triton holds it.
    """

    def __init__(self, reason: str, *, passing: bool = False, loaded: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing
        self.loaded = loaded


class VersionLoader:
    """Loads versions.

    Args:
        settings: of the gateway.
        client: connection to Triton.
        streams: channel to Triton for models that generate.
    """

    def __init__(self, settings: Settings, client: TritonClient, streams: TritonStreams) -> None:
        self._settings = settings
        self._client = client
        self._streams = streams

    async def load(self, name: str, version: str, beside: Sequence[str], *, anew: bool = False) -> Served:
        """Loads one version of the variant in folder `name`.

        Args:
            name: folder of the variant.
            version: to load.
            beside: versions that stay loaded in Triton.
            anew: as in `load_in_triton`.

        Raises:
            VersionRefused: its files, Triton or its self-check say no.
            ModelUnavailable: Triton could not be asked to load it, which says nothing about the version.
        """
        folder = self._settings.model_repository / name / version
        try:
            manifest = await asyncio.to_thread(_read, folder)
            tokenizer = await asyncio.to_thread(Tokenizer, folder / TOKENIZER_FILE, manifest.max_tokens)
        except ManifestError as error:
            raise VersionRefused(str(error)) from error
        except Exception as error:  # tokenizers raises plain Exception for a file it cannot read
            raise VersionRefused(f"{folder / TOKENIZER_FILE}: {error}") from error
        if manifest.weight_bits == 8 and not self._settings.triton_url and saturates():
            LOG.warning(
                "%s %s: quantized with 8-bit weights on a processor with VNNI; this one has none, and sums of products "
                "may overflow. Its measured quality does not hold here: build it anew on this kind of machine",
                name,
                version,
            )
        states = await self.load_in_triton(name, [version, *beside], anew=anew)
        if states[version] != READY:
            raise VersionRefused(f"Triton did not load it: {states[version]}", passing=True)
        try:
            served = Served(manifest, version, tokenizer, await self.lane(manifest, version))
            await selfcheck.check(served)
        except (selfcheck.SelfCheckFailed, MillisError) as error:
            # A wrong answer too: Triton may still hold what the same number was before.
            raise VersionRefused(str(error), passing=True, loaded=True) from error
        return served

    async def load_in_triton(self, name: str, versions: Sequence[str], *, anew: bool = False) -> dict[str, str]:
        """As `hold`, but returns what Triton says of each version: `READY` or why not.

        Args:
            name: folder of the variant.
            versions: wanted.
            anew: whether all of it is unloaded first: to Triton a version whose process died is still ready, and a
                plain load changes nothing.

        Raises:
            BackendFault, ModelUnavailable: as `TritonClient.versions`.
        """
        failure = "Triton does not know it"
        try:
            if anew:
                await self._client.unload(name)
            await self.hold(name, versions)
        except ModelUnavailable:
            raise
        except MillisError as error:
            failure = str(error)
        known = await self._client.versions(name)
        return {version: known.get(version, failure) for version in versions}

    async def hold(self, name: str, versions: Sequence[str]) -> None:
        """Has Triton hold just these versions of a variant, by its config as it is now.

        Versions are named one by one, whatever the config's own policy: asked for the newest two, Triton loads
        neither when one is broken (docs/adr/0002).

        Raises:
            BackendFault: one cannot be loaded, or the config; all that was loaded before stays.
            ModelUnavailable: Triton is not there.
        """
        variant = self._settings.model_repository / name
        await self._client.load(name, await asyncio.to_thread(config_for, variant, versions))

    async def lane(self, manifest: Manifest, version: str) -> Lane | Streams:
        """The way to a version that Triton holds: streams for a model that generates, else a lane.

        A lane is as wide as the version's config asks for, or else the settings; batches fit both.

        Raises:
            VersionRefused: the config's parameter is none.
        """
        if manifest.generation is not None:
            settings = self._settings
            return Streams(
                self._streams, manifest, version, settings.max_waiting_generations, settings.infer_timeout_seconds
            )
        config = await self._client.config(manifest.triton_model, version)
        parameters = config.get("parameters", {})
        width = parameters.get("lanes", {}).get("string_value", str(self._settings.lanes))
        if not width.isdecimal() or not 1 <= int(width) <= MAX_LANES:
            reason = f"config.pbtxt: parameter lanes must be from 1 to {MAX_LANES}, not {width!r}"
            raise VersionRefused(reason, loaded=True)
        # The backend has checked this one: it runs with it.
        workers = int(parameters.get("workers", {}).get("string_value", "1"))
        max_batch = min(self._settings.max_batch, max(1, config["max_batch_size"]))
        return Lane(self._client, manifest, version, int(width), max_batch, workers)


def _read(folder: Path) -> Manifest:
    """Reads a version's manifest and checks its files; reads every byte of the weights."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return manifest


def refusal_of(version: str, error: VersionRefused, before: Refusal | None) -> Refusal:
    """What is kept of a refusal.

    A machine too busy to start a process in time is no fault of the version: it is tried again, ever more seldom.

    Args:
        version: that was refused.
        error: why.
        before: what was kept of the try before.
    """
    tries = before.tries + 1 if before is not None else 1
    pause = min(RETRY_SECONDS * 2 ** (tries - 1), LONGEST_RETRY_SECONDS)
    again = monotonic() + pause if error.passing else inf
    return Refusal(version, str(error), datetime.now(UTC), tries, again)
