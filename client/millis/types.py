"""What the SDK returns: frozen values that know nothing of protobuf.

Results of one call share one `Info`. Two results are equal when they say the same, whoever served them:
`info` takes no part in comparisons.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServedBy:
    """The model that answered."""

    model: str
    """Logical model name, for example `intent`."""
    version: str
    """Version, as in the model repository."""
    variant: str
    """Variant, for example `int8`."""
    degraded: bool
    """Whether a variant of lower measured quality than the model's default answered."""
    reason: str
    """Why this variant was chosen, in plain English."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The work that a call took."""

    inputs: int
    """Texts, or query and document pairs, answered."""
    tokens: int
    """Tokens as the model reads them, special tokens included, padding not; also those answered from the cache."""
    padded_tokens: int = 0
    """Tokens that the model computed beside those, because inputs of other lengths shared a batch with them."""
    layers: int = 0
    """Layers that the inputs went through, added up, for a variant with early exits; 0 for others."""
    generated_tokens: int = 0
    """Tokens that were generated, over all answers: only for `generate`, at the end of its stream."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a call went inside the gateway, in milliseconds; the network is not in it."""

    total_ms: float
    tokenize_ms: float
    queue_ms: float
    infer_ms: float
    postprocess_ms: float


@dataclass(frozen=True, slots=True)
class Info:
    """How a response was made."""

    served_by: ServedBy
    usage: Usage
    timing: Timing | None
    """Set only when the call asked with `include_timing=True`."""
    cache: str
    """Where the answer came from: `disabled`, `hit`, `miss`, `partial` or `bypassed`."""
    truncated_inputs: tuple[int, ...]
    """Indices of the inputs that were too long and were cut."""
    client_request_id: str
    """The caller's own id of the request, unchanged."""


@dataclass(frozen=True, slots=True)
class Results(Sequence[T], Generic[T]):
    """The results of a list of inputs, in their order: a sequence that also says how it was made."""

    items: tuple[T, ...]
    info: Info = field(compare=False, repr=False)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[T, ...]: ...
    def __getitem__(self, index: int | slice) -> T | tuple[T, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)


@dataclass(frozen=True, slots=True)
class Label:
    """A label and how sure the model is of it, 0 to 1."""

    name: str
    score: float


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of one text."""

    labels: tuple[Label, ...]
    """Best first; empty when none reached the lowest score asked for."""
    info: Info = field(compare=False, repr=False)

    @property
    def label(self) -> str | None:
        """Name of the best label; None when there is none."""
        return self.labels[0].name if self.labels else None

    @property
    def score(self) -> float:
        """Score of the best label, 0 to 1; 0 when there is none."""
        return self.labels[0].score if self.labels else 0.0


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a text: from `start` up to, but not including, `end`."""

    start: int
    end: int
    unit: str
    """What they count: `code_point`, `utf8_byte` or `utf16_code_unit`."""

    def cut(self, text: str) -> str:
        """The piece of `text` that is meant, in whichever unit this span counts."""
        if self.unit == "utf8_byte":
            return text.encode()[self.start : self.end].decode()
        if self.unit == "utf16_code_unit":
            return text.encode("utf-16-le")[2 * self.start : 2 * self.end].decode("utf-16-le")
        return text[self.start : self.end]


@dataclass(frozen=True, slots=True)
class Entity:
    """A piece of a text with a label."""

    text: str
    """The piece itself."""
    label: str
    """Without `B-` or `I-`, for example `PER`."""
    score: float
    """0 to 1: mean of the scores of its words (or tokens)."""
    span: Span
    first_word: int | None = None
    """Index of its first word. Set only for `words=`."""
    last_word: int | None = None
    """Index of its last word, included. Set only for `words=`."""


@dataclass(frozen=True, slots=True)
class ClassifiedToken:
    """One token with its most likely label."""

    text: str
    """The token as the vocabulary writes it, for example `##ing`."""
    label: str
    """With prefix, for example `B-PER`."""
    score: float
    """0 to 1."""
    span: Span


@dataclass(frozen=True, slots=True)
class TokenClassification:
    """The entities of one text."""

    entities: tuple[Entity, ...]
    """In the order of the text."""
    tokens: tuple[ClassifiedToken, ...]
    """Every token but special ones; filled only with `include_tokens=True`."""
    windows: int
    """Number of overlapping windows in which the text was read."""
    info: Info = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The vector of one text, as packed on the wire."""

    data: bytes = field(repr=False)
    """Packed as `encoding` says: little-endian floats, signed bytes, or bits (first dimension highest)."""
    encoding: str
    """`float32`, `float16`, `int8` or `binary`."""
    dimensions: int
    scale: float
    """Factor from byte to value for `int8`; else 0."""
    info: Info = field(compare=False, repr=False)

    @property
    def values(self) -> tuple[float, ...]:
        """The vector [dimensions], unpacked anew at each use. `binary` gives 1.0 and 0.0."""
        if self.encoding == "float32":
            return struct.unpack(f"<{self.dimensions}f", self.data)
        if self.encoding == "float16":
            return struct.unpack(f"<{self.dimensions}e", self.data)
        if self.encoding == "int8":
            return tuple(byte * self.scale for byte in struct.unpack(f"{self.dimensions}b", self.data))
        bits = f"{int.from_bytes(self.data, 'big'):0{8 * len(self.data)}b}"
        return tuple(float(bit) for bit in bits[: self.dimensions])

    def numpy(self) -> NDArray[np.float32]:
        """The vector as a new float32 array [dimensions]. `binary` gives 1.0 and 0.0.

        Raises:
            ModuleNotFoundError: numpy is not installed; the SDK does not need it otherwise.
        """
        import numpy as np

        if self.encoding == "float32":
            return np.frombuffer(self.data, dtype="<f4").astype(np.float32)
        if self.encoding == "float16":
            return np.frombuffer(self.data, dtype="<f2").astype(np.float32)
        if self.encoding == "int8":
            return np.frombuffer(self.data, dtype=np.int8).astype(np.float32) * np.float32(self.scale)
        packed = np.frombuffer(self.data, dtype=np.uint8)
        return np.unpackbits(packed, count=self.dimensions).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Ranked:
    """One document with its score."""

    index: int
    """Index of the document in the call."""
    score: float
    """Relevance, the higher the better; `Ranking.score_type` says its range."""
    text: str = field(repr=False)
    """The document."""


@dataclass(frozen=True, slots=True)
class Ranking(Results[Ranked]):
    """The documents of one query, best first; equal scores keep the order of the call."""

    score_type: str
    """`cosine` (-1 to 1), `probability` (0 to 1) or `logit` (unbounded)."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of the vocabulary."""

    id: int
    """Its number in the vocabulary."""
    text: str
    """As the vocabulary writes it, for example `##ing`."""
    span: Span
    """Where it stands in the text; empty for a special token."""
    special: bool
    """Whether it is a special token such as `[CLS]`."""


@dataclass(frozen=True, slots=True)
class Tokenization:
    """The tokens of one text, as the model reads it, never truncated."""

    tokens: tuple[Token, ...]
    max_tokens: int
    """Most tokens, special ones included, that the model reads of one text."""
    info: Info = field(compare=False, repr=False)

    @property
    def ids(self) -> tuple[int, ...]:
        """Numbers of the tokens in the vocabulary."""
        return tuple(token.id for token in self.tokens)
