"""The path of a request: admit, choose, pre-process, look up or run, post-process; timed.

This is the one place where tasks, routing, the cache and Triton meet.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Generic, TypeVar, cast

from millis_server.cache import AnswerCache, Policy, Status
from millis_server.catalogue import Catalogue, Variant
from millis_server.errors import DeadlineUnreachable, Draining, Overloaded
from millis_server.prediction import Predictor
from millis_server.reload import Reloader
from millis_server.routing import Choice, Demand, Wishes, choose
from millis_server.tasks import Task
from millis_server.triton.client import StubDied
from millis_server.triton.lane import Lane

Result = TypeVar("Result")

INLINE_CHARACTERS = 8192
"""Requests longer than this are tokenized on a thread: more would hold up every other request on the event loop
by more than about a millisecond."""

INLINE_INPUTS = 64
"""Requests with more inputs than this are pre- and post-processed on a thread, for the same reason."""


def is_long(demand: Demand) -> bool:
    """Whether work on so much text belongs on a thread."""
    return demand.inputs > INLINE_INPUTS or demand.characters > INLINE_CHARACTERS


@dataclass(frozen=True, slots=True)
class Times:
    """Where the time went, in seconds."""

    total: float
    tokenize: float
    queue: float
    infer: float
    postprocess: float


@dataclass(frozen=True, slots=True)
class Answer(Generic[Result]):
    """Typed results, and how they were made."""

    results: Sequence[Result]
    choice: Choice
    tokens: int
    """Tokens of the inputs as the model reads them, special ones included."""
    padded_tokens: int
    """Tokens that the model computed beside those."""
    layers: int
    """Layers that the inputs went through, added up; 0 for a variant without early exits."""
    truncated: Sequence[int]
    times: Times
    cache: Status


class Inference:
    """Answers tasks.

    Args:
        catalogue: the models.
        reloader: told when a model's process died.
        cache: of the models' outputs.
        predictor: of the time that versions will take.
        max_pending_inputs: most inputs being worked on at once.

    Attributes:
        decisions: requests by model, variant that was chosen and cause; for refused ones the variant is empty and the
            cause is `deadline_unreachable`.
        draining: whether new work is refused.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        reloader: Reloader,
        cache: AnswerCache,
        predictor: Predictor,
        max_pending_inputs: int,
    ) -> None:
        self._catalogue = catalogue
        self._reloader = reloader
        self._cache = cache
        self._max_pending = max_pending_inputs
        self._predictor = predictor
        self.pending = 0
        """Inputs being worked on now."""
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        self.draining = False

    async def run(
        self, task: Task[Result], model: str, wishes: Wishes, cache_policy: Policy = "default"
    ) -> Answer[Result]:
        """Answers one task.

        Args:
            task: the question.
            model: logical model name; empty is the default of the task.
            wishes: on the choice of variant.
            cache_policy: whether the model's outputs may come from the cache.

        Raises:
            MillisError: the reason why there is no answer.
        """
        started = perf_counter()
        expires = inf if wishes.time_left is None else started + wishes.time_left
        with self.admitted(task.inputs):
            demand = Demand(task.inputs, task.characters)
            choice = self._choose(self._catalogue.resolve(model, task.name, task.answered_by), demand, wishes)
            served = choice.served
            lane = cast(Lane, served.lane)  # the way to every model but those that generate
            off_loop = is_long(demand)
            with lane, self._predictor.under_way(choice.forecast, wishes.hurried) as booking:
                if off_loop:
                    prepared = await asyncio.to_thread(task.preprocess, served.manifest, served.tokenizer)
                else:
                    prepared = task.preprocess(served.manifest, served.tokenizer)
                tokenized = perf_counter()
                try:
                    outputs = await self._cache.run(lane, prepared.rows, cache_policy, expires)
                except StubDied:
                    self._reloader.recover(served.manifest.triton_model)
                    raise
                inferred = perf_counter()
                booking.tells = outputs.own
                # A row that was on its way for another caller may have waited before this call came.
                queued = min(outputs.queued, inferred - tokenized)
                if off_loop:
                    results = await asyncio.to_thread(task.postprocess, served.manifest, outputs.rows)
                else:
                    results = task.postprocess(served.manifest, outputs.rows)
        done = perf_counter()
        times = Times(
            total=done - started,
            tokenize=tokenized - started,
            queue=queued,
            infer=inferred - tokenized - queued,
            postprocess=done - inferred,
        )
        tokens = sum([len(row.ids) for row in prepared.rows])
        if not prepared.truncated:
            self._predictor.learn_density(served.manifest.model, len(prepared.rows), tokens, demand.characters)
        return Answer(
            results, choice, tokens, outputs.padded, outputs.layers, prepared.truncated, times, outputs.status
        )

    def _choose(self, variants: Sequence[Variant], demand: Demand, wishes: Wishes) -> Choice:
        """Chooses the version that answers, and counts the decision."""
        try:
            choice = choose(variants, self._predictor, demand, wishes)
        except DeadlineUnreachable:
            self.decisions[variants[0].manifest.model, "", "deadline_unreachable"] += 1
            raise
        self.decisions[variants[0].manifest.model, choice.served.manifest.variant, choice.cause.value] += 1
        return choice

    @contextmanager
    def admitted(self, inputs: int) -> Iterator[None]:
        """Takes inputs in for the length of a `with` block, before any work is done for them, or refuses.

        Raises:
            Draining: the gateway is stopping.
            Overloaded: too many are being worked on.
        """
        if self.draining:
            raise Draining("the gateway is stopping")
        if self.pending + inputs > self._max_pending:
            raise Overloaded(
                f"{self.pending} inputs are being worked on and the call has {inputs}; the limit is {self._max_pending}"
            )
        self.pending += inputs
        try:
            yield
        finally:
            self.pending -= inputs
