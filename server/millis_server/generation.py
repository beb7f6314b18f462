"""The path of a generation: admit, choose, tokenize, wait for a place, stream.

As infer.py is for the other tasks. What differs is time: an answer takes as long as it is, so callers hold places at
the engine (places.py) and what came is handed on at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

from millis_server.catalogue import Catalogue, Served
from millis_server.chat import ChatTemplates
from millis_server.errors import Draining
from millis_server.infer import INLINE_CHARACTERS
from millis_server.prediction import Predictor
from millis_server.reload import Reloader
from millis_server.routing import Choice, Demand, Wishes, choose
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.triton.client import StubDied
from millis_server.triton.protocols import Chunk
from millis_server.triton.streams import Streams


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a place.

    Attributes:
        choice: what answers.
        prompt_tokens: of the prompt.
    """

    choice: Choice
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The end.

    Attributes:
        choice: what answered.
        prompt_tokens: of the prompt.
        finishes: why each text ended, `stop` or `length`.
        tokens: generated for each text.
        tokenize: seconds from arrival until the prompt was made: the chat template, and the tokenizer.
        queue: seconds spent waiting for a place.
        first: seconds from arrival to the first token.
        per_token: mean seconds from one token to the next; None for fewer than 2 tokens, and for texts that come whole.
        total: seconds from arrival to the end.
    """

    choice: Choice
    prompt_tokens: int
    finishes: tuple[str, ...]
    tokens: tuple[int, ...]
    tokenize: float
    queue: float
    first: float
    per_token: float | None
    total: float


Event: TypeAlias = Started | Chunk | Finished


class Generations:
    """Answers GenerateText.

    Args:
        catalogue: the models.
        reloader: told when a model's process died.
        predictor: of no use for a generation's time, but routing asks it.

    Attributes:
        decisions: requests by model, variant and cause.
        draining: whether new work is refused.
    """

    def __init__(self, catalogue: Catalogue, reloader: Reloader, predictor: Predictor) -> None:
        self._catalogue = catalogue
        self._reloader = reloader
        self._predictor = predictor
        self._templates = ChatTemplates()
        self.decisions: Counter[tuple[str, str, str]] = Counter()
        self.draining = False

    async def run(self, task: TextGeneration, model: str, wishes: Wishes) -> AsyncGenerator[Event, None]:
        """Streams one answer: `Started`, then chunks, then `Finished`. Closing the iterator frees the engine.

        Raises:
            MillisError: the reason why there is no answer, or no more of it.
        """
        began = perf_counter()
        if self.draining:
            raise Draining("the gateway is stopping")
        choice = self._choose(task, model, wishes)
        served = choice.served
        streams = served.lane
        assert isinstance(streams, Streams), "a model that generates has streams. This is a bug."
        with streams:
            prompt = await self._prepare(task, served)
            prepared = perf_counter()
            left = None if wishes.time_left is None else wishes.time_left - (prepared - began)
            async with streams.places.take(prompt.width, prompt.tokens, left):
                clock = _Clock(began, prepared, task.n)
                try:
                    # The engine begins while the first message is on its way.
                    async with aclosing(streams.generate(task, prompt)) as chunks:
                        yield Started(choice, len(prompt.ids))
                        async for chunk in chunks:
                            clock.take(chunk)
                            streams.tokens += chunk.made
                            yield chunk
                except StubDied:
                    self._reloader.recover(served.manifest.triton_model)
                    raise
        yield clock.finished(choice, len(prompt.ids))

    def _choose(self, task: TextGeneration, model: str, wishes: Wishes) -> Choice:
        variants = self._catalogue.resolve(model, task.name, task.answered_by)
        choice = choose(variants, self._predictor, Demand(1, task.characters), wishes)
        manifest = choice.served.manifest
        self.decisions[manifest.model, manifest.variant, choice.cause.value] += 1
        return choice

    async def _prepare(self, task: TextGeneration, served: Served) -> Prompt:
        if task.characters + len(task.ids) > INLINE_CHARACTERS:
            return await asyncio.to_thread(task.prepare, served.manifest, served.tokenizer, self._templates)
        return task.prepare(served.manifest, served.tokenizer, self._templates)


class _Clock:
    """Times one generation."""

    def __init__(self, began: float, prepared: float, texts: int) -> None:
        self._began = began
        self._tokenize = prepared - began
        self._queue = perf_counter() - prepared
        self._first = 0.0
        self._last = 0.0
        self._with_first = 0
        self._made = [0] * texts
        self._finishes = [""] * texts

    def take(self, chunk: Chunk) -> None:
        if chunk.made:
            self._last = perf_counter()
            if not self._first:
                self._first = self._last
                self._with_first = chunk.made
        self._made[chunk.sequence] += chunk.made
        if chunk.finish:
            self._finishes[chunk.sequence] = chunk.finish

    def finished(self, choice: Choice, prompt_tokens: int) -> Finished:
        later = sum(self._made) - self._with_first
        return Finished(
            choice=choice,
            prompt_tokens=prompt_tokens,
            finishes=tuple(self._finishes),
            tokens=tuple(self._made),
            tokenize=self._tokenize,
            queue=self._queue,
            first=(self._first or self._last or perf_counter()) - self._began,
            per_token=(self._last - self._first) / later if later > 0 and len(self._made) == 1 else None,
            total=perf_counter() - self._began,
        )
