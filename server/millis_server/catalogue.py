"""What the gateway serves: logical models, their variants, and the version of each that takes traffic.

The catalogue is only data. It is changed by what follows the repository (reload.py, config_changes.py) and by
recovery.py, on the event loop, by replacing a variant's `current`; a request takes one `Served` and keeps it to its
end, so no answer mixes two versions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from math import inf

from millis_server.errors import InvalidField, ModelNotFound, TaskMismatch
from millis_server.manifest import Manifest, TaskName
from millis_server.pace import Pace
from millis_server.tokenizer import Tokenizer
from millis_server.triton.lane import Lane
from millis_server.triton.streams import Streams


@dataclass(frozen=True, slots=True)
class Served:
    """One version of one variant, ready to answer: weights, tokenizer, labels and measured speed belong together."""

    manifest: Manifest
    version: str
    tokenizer: Tokenizer
    lane: Lane | Streams
    """The way to it; streams for a model that generates."""
    pace: Pace = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        manifest, lane = self.manifest, self.lane
        if isinstance(lane, Lane):
            pace = Pace(manifest.model, manifest.latency, lane.workers, lane.rows_at_once)
        else:
            pace = Pace(manifest.model, manifest.latency)
        object.__setattr__(self, "pace", pace)


class State(Enum):
    """How far a variant is from answering."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"
    RECOVERING = "recovering"
    UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a version did not get into service.

    Attributes:
        version: that was refused.
        reason: in plain English.
        at: when.
        tries: so far.
        again: when it is tried once more, on the clock of `time.monotonic`; never when its own files are at fault.
    """

    version: str
    reason: str
    at: datetime
    tries: int = 1
    again: float = inf


@dataclass(slots=True)
class Variant:
    """One folder of the repository.

    Attributes:
        manifest: of the version in service, or of the newest readable one.
        state: whether it answers.
        reason: why it does not.
        current: what takes traffic.
        standby: the version before, still loaded: rolling back to it takes no time.
        refused: versions that failed, by version.
        config_stamp: tells the config.pbtxt that Triton has read from a newer one; None before the first.
    """

    manifest: Manifest
    state: State = State.LOADING
    reason: str = ""
    current: Served | None = None
    standby: Served | None = None
    refused: dict[str, Refusal] = field(default_factory=dict)
    config_stamp: tuple[int, int] | None = None

    @property
    def loaded(self) -> list[Served]:
        """What can answer, the current version first."""
        return [served for served in (self.current, self.standby) if served is not None]

    def serving(self, version: str) -> Served | None:
        """The version asked for, or the current one for an empty `version`; None when it is not loaded."""
        for served in (self.current, self.standby):
            if served is not None and version in ("", served.version):
                return served
        return None


class Catalogue:
    """All variants by the name of their folder, with the questions a request asks of them.

    Attributes:
        variants: by folder.
        unreadable: folders without any manifest that can be read, and why.
    """

    def __init__(self) -> None:
        self.variants: dict[str, Variant] = {}
        self.unreadable: dict[str, str] = {}
        self._watchers: set[asyncio.Queue[str]] = set()

    def models(self) -> list[str]:
        """Names of the logical models, sorted."""
        return sorted({variant.manifest.model for variant in self.variants.values()})

    def variants_of(self, model: str) -> list[Variant]:
        """Variants of a logical model in the order of their names.

        Raises:
            ModelNotFound: there are none.
        """
        found = [variant for variant in self.variants.values() if variant.manifest.model == model]
        if not found:
            raise self.not_found(model, f"no model {model!r}")
        return sorted(found, key=lambda variant: variant.manifest.variant)

    def not_found(self, model: str, problem: str) -> ModelNotFound:
        """The error for a model that is not there: names those that are, and why folders of that name were ignored."""
        known = ", ".join(self.models()) or "none"
        # Only its manifest says whose a folder is; its name begins with the model's.
        ignored = [f"; ignored {name}: {why}" for name, why in self.unreadable.items() if name.startswith(f"{model}-")]
        return ModelNotFound("model", model, f"{problem}; models are: {known}{''.join(ignored)}")

    def default_model(self, task: TaskName) -> str | None:
        """The model of a task that requests without a name mean: the only one, or the one published as default."""
        manifests = [variant.manifest for variant in self.variants.values() if variant.manifest.task == task]
        names = sorted({manifest.model for manifest in manifests})
        chosen = sorted({manifest.model for manifest in manifests if manifest.default_for_task})
        if len(names) == 1:
            return names[0]
        return chosen[0] if chosen else None

    def only_model(self, asked: str) -> str:
        """The only model there is, for questions that any model can answer.

        Raises:
            ModelNotFound: there is none.
            InvalidField: there are several.
        """
        names = self.models()
        if not names:
            raise ModelNotFound("model", "", f"no model answers {asked}")
        if len(names) > 1:
            raise _no_default(asked, names)
        return names[0]

    def resolve(self, model: str, asked: str, tasks: tuple[TaskName, ...]) -> list[Variant]:
        """Finds the variants that a request means.

        Args:
            model: name from the request; empty is the default.
            asked: the RPC, for messages.
            tasks: tasks that can answer, the preferred first.

        Raises:
            InvalidField: no name was given and several models could be meant.
            ModelNotFound: there is no such model.
            TaskMismatch: the model is of another task.
        """
        if not model:
            for task in tasks:
                if name := self.default_model(task):
                    return self.variants_of(name)
            candidates = sorted({v.manifest.model for v in self.variants.values() if v.manifest.task in tasks})
            if not candidates:
                raise ModelNotFound("model", "", f"no model answers {asked}")
            raise _no_default(asked, candidates)
        variants = self.variants_of(model)
        task = variants[0].manifest.task
        if task not in tasks:
            raise TaskMismatch(f"model {model!r} is for {task}; {asked} needs {' or '.join(tasks)}")
        return variants

    def retire(self, variant: Variant, state: State, reason: str) -> list[Served]:
        """Ends traffic to a variant and tells watchers; returns what answered for it, which has to be drained."""
        leaving = variant.loaded
        variant.current = variant.standby = None
        variant.state = state
        variant.reason = reason
        self.changed(variant.manifest.model)
        return leaving

    def changed(self, model: str) -> None:
        """Tells watchers that a logical model is new, changed or gone."""
        for queue in self._watchers:
            queue.put_nowait(model)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[str]]:
        """A queue that receives the names of models as they change, for the length of a `with` block."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            yield queue
        finally:
            self._watchers.discard(queue)


def _no_default(asked: str, names: list[str]) -> InvalidField:
    return InvalidField("model", f"is empty, and {asked} has no default; name one of {', '.join(names)}")
