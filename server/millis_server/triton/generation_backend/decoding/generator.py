"""What an engine of the `millis_generation` backend is, and which ones there are.

An engine generates many texts side by side, one step at a time; it knows nothing of Triton, of texts or of callers.
Another one is a file `generator_<name>.py` with a function `load`, and its name in `GENERATORS`. Its library is
imported only when a config asks for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

GENERATORS = ("openvino_genai", "transformers")
"""Values of the config's parameter `engine`; the first is the default."""

EXTRAS = {"openvino_genai": "generation", "transformers": "generation-torch"}
"""Extra of the millis distribution that installs each engine's library."""

GuideKind = Literal["json", "regex", "choice"]


@dataclass(frozen=True)
class Guide:
    """What a text must obey.

    Attributes:
        kind: of rule.
        rule: a JSON schema as text, or a regular expression, or the choices.
    """

    kind: GuideKind
    rule: str | tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """One prompt to go on from. The fields are those of vLLM's SamplingParams.

    Attributes:
        prompt: token ids.
        max_tokens: most tokens of each text.
        temperature: 0 is greedy.
        top_k: 0 is all.
        seed: None draws another one for each request.
        logprobs: whether each token comes with its log-probability.
        n: texts to make.
        beams: of a beam search; 0 is none.
        guide: None is free text.
        ignore_eos: whether texts go on past their end.
    """

    prompt: Sequence[int]
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: bool = False
    n: int = 1
    beams: int = 0
    guide: Guide | None = None
    ignore_eos: bool = False


class Piece(NamedTuple):
    """What one step made for one text.

    Attributes:
        number: of the request, as given to `Generator.add`.
        sequence: which of its texts, counted from 0.
        tokens: new ones; an end-of-text token is not among them.
        logprobs: of these tokens; empty when not asked for.
        made: tokens that were generated, an end-of-text token included.
        finish: `stop`, `length`, or empty while the text goes on.
    """

    number: int
    sequence: int
    tokens: Sequence[int]
    logprobs: Sequence[float]
    made: int
    finish: str


class InvalidRequest(ValueError):
    """A request that the engine cannot take; the message begins with the field's name and a colon."""


class GenerationFailed(RuntimeError):
    """One text cannot be finished; the others go on."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(reason)
        self.number = number


class Generator(Protocol):
    """Generates texts. One thread calls it."""

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""

    def add(self, number: int, request: Request) -> None:
        """Takes a request in; its first token comes with one of the next steps.

        Raises:
            InvalidRequest: the engine cannot do what it asks for.
        """

    def step(self) -> list[Piece]:
        """Makes about one token for each text, and returns what is new.

        Raises:
            GenerationFailed: one request came to nothing and is gone. No piece of another is lost with it.
        """

    def cancel(self, number: int) -> bool:
        """Drops a request, of which nothing comes any more; its memory is free after the next step.

        Returns:
            Whether it was still there.
        """

    def close(self) -> None:
        """Ends what runs beside the caller's thread; nothing is asked of the engine after it."""


@dataclass(frozen=True)
class GeneratorOptions:
    """How an engine may use the machine.

    Attributes:
        threads: that work on one step.
        device: `cpu` or `cuda`.
        max_streams: most texts side by side.
        cache_tokens: tokens for which it has memory at once.
        max_batched_tokens: most tokens in one step; longer prompts are read in parts.
        kv_cache_precision: of the memory of tokens read, `f32`, `f16`, `bf16` or `u8`.
        prefix_caching: whether work on common beginnings of prompts is kept.
        prompt_lookup: tokens to guess from the prompt in each step; 0 is off.
        draft: folder, inside the version's, of a small model that guesses tokens; empty is none.
        cuda_graphs: whether steps are captured as CUDA graphs; None leaves it to the engine.
        eos: tokens that end a text.
    """

    threads: int = 1
    device: str = "cpu"
    max_streams: int = 8
    cache_tokens: int = 4096
    max_batched_tokens: int = 256
    kv_cache_precision: str = "u8"
    prefix_caching: bool = True
    prompt_lookup: int = 0
    draft: str = ""
    cuda_graphs: bool | None = None
    eos: tuple[int, ...] = ()


def load_generator(name: str, folder: Path, options: GeneratorOptions) -> Generator:
    """Loads a version's model into the engine of that name.

    Raises:
        ValueError: no engine has the name, its library is not installed, or it cannot do what the options ask for;
            the message is one line and says what would do.
    """
    if name not in GENERATORS:
        raise ValueError(f"parameter engine must be one of {', '.join(GENERATORS)}, not {name!r}")
    try:
        module = importlib.import_module(f".generator_{name}", __package__)
    except ModuleNotFoundError as error:
        raise ValueError(
            f'parameter engine is {name!r}, which is not installed: pip install "millis[{EXTRAS[name]}]" '
            f"in the environment that runs Triton ({error})"
        ) from None
    generator: Generator = module.load(folder, options)
    return generator
