"""The path of a request: admit, choose, pre-process, run, post-process; timed.

This is the one place where tasks, routing and Triton meet.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from time import perf_counter
from typing import Generic, TypeVar

from millis_server.catalogue import Catalogue, Variant
from millis_server.errors import DeadlineUnreachable, Draining, Overloaded
from millis_server.prediction import Predictor
from millis_server.reload import Reloader
from millis_server.routing import Choice, Demand, Wishes, choose
from millis_server.tasks import Task
from millis_server.triton.client import StubDied

Result = TypeVar("Result")

INLINE_CHARACTERS = 8192
"""Requests longer than this are tokenized on a thread: more would hold up every other request on the event loop
by more than about a millisecond."""

INLINE_INPUTS = 64
"""Requests with more inputs than this are pre- and post-processed on a thread, for the same reason."""


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
    """Tokens sent to the model, special ones included."""
    truncated: Sequence[int]
    times: Times


class Inference:
    """Answers tasks.

    Args:
        catalogue: the models.
        reloader: told when a model's process died.
        max_pending_inputs: most inputs being worked on at once.
        predictor: of the time that versions will take.

    Attributes:
        decisions: requests by model, variant that was chosen and cause; for refused ones the variant is empty and the
            cause is `deadline_unreachable`.
        draining: whether new work is refused.
    """

    def __init__(self, catalogue: Catalogue, reloader: Reloader, max_pending_inputs: int, predictor: Predictor) -> None:
        self._catalogue = catalogue
        self._reloader = reloader
        self._max_pending = max_pending_inputs
        self._predictor = predictor
        self._pending = 0
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        self.draining = False

    async def run(self, task: Task[Result], model: str, wishes: Wishes) -> Answer[Result]:
        """Answers one task.

        Args:
            task: the question.
            model: logical model name; empty is the default of the task.
            wishes: on the choice of variant.

        Raises:
            MillisError: the reason why there is no answer.
        """
        started = perf_counter()
        expires = inf if wishes.time_left is None else started + wishes.time_left
        with self._admitted(task.inputs):
            demand = Demand(task.inputs, task.characters)
            choice = self._choose(self._catalogue.resolve(model, task.name, task.answered_by), demand, wishes)
            served = choice.served
            off_loop = demand.inputs > INLINE_INPUTS or demand.characters > INLINE_CHARACTERS
            with self._predictor.under_way(choice.forecast, wishes.hurried):
                if off_loop:
                    prepared = await asyncio.to_thread(task.preprocess, served.manifest, served.tokenizer)
                else:
                    prepared = task.preprocess(served.manifest, served.tokenizer)
                tokenized = perf_counter()
                try:
                    outputs, queued = await served.lane.run(prepared.rows, expires)
                except StubDied:
                    self._reloader.recover(served.manifest.triton_model)
                    raise
                inferred = perf_counter()
                if off_loop:
                    results = await asyncio.to_thread(task.postprocess, served.manifest, outputs)
                else:
                    results = task.postprocess(served.manifest, outputs)
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
        return Answer(results, choice, tokens, prepared.truncated, times)

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
    def _admitted(self, inputs: int) -> Iterator[None]:
        """Takes inputs in, before any work is done for them, or refuses."""
        if self.draining:
            raise Draining("the gateway is stopping")
        if self._pending + inputs > self._max_pending:
            raise Overloaded(
                f"{self._pending} inputs are being worked on and the call has {inputs}; "
                f"the limit is {self._max_pending}"
            )
        self._pending += inputs
        try:
            yield
        finally:
            self._pending -= inputs
