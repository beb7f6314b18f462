"""What the model API returns: models, their variants, and what was measured of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Quality:
    """What a variant was measured to be worth when it was published."""

    metric: str
    """For example `accuracy`, `entity_f1` or `cosine_to_teacher`."""
    value: float
    """0 to 1; higher is better."""
    low: float
    """Lower end of the 95 % confidence interval."""
    high: float
    """Upper end of the 95 % confidence interval."""
    examples: int
    dataset: str


@dataclass(frozen=True, slots=True)
class LatencyPoint:
    """A measured time of the bare engine, on the machine that published the variant."""

    batch: int
    """Texts in the batch."""
    tokens: int
    """Tokens in each text."""
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Exit:
    """A place at which a variant with early exits answers."""

    layers: int
    """Layers that an input has gone through when it gets here."""
    threshold: float | None
    """Lowest confidence at which an input is answered here; None at the last one, which answers all that come."""
    share: float
    """Of the inputs of the evaluation data that were answered here."""


@dataclass(frozen=True, slots=True)
class RefusedVersion:
    """A version that did not get into service."""

    version: str
    reason: str
    """What went wrong, in plain English."""
    refused_at: datetime
    """With time zone, UTC."""


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One way to answer for a model: smaller, faster or better."""

    name: str
    """For example `int8`."""
    triton_model: str
    """Name of its folder in the model repository."""
    state: str
    """`loading`, `ready`, `failed`, `recovering` or `unloaded`."""
    reason: str
    """Why it is in this state, when it is not `ready`."""
    version: str
    """Version that takes traffic; empty when none does."""
    refused_versions: tuple[RefusedVersion, ...]
    is_default: bool
    """Whether requests without wishes are answered by this variant."""
    quality: Quality | None
    """None when the model was published without evaluation data."""
    latency: tuple[LatencyPoint, ...]
    size_bytes: int
    """Size of the weights."""
    exits: tuple[Exit, ...] = ()
    """Where it answers, for a variant with early exits, in order; empty for one without."""


@dataclass(frozen=True, slots=True)
class Model:
    """A logical model with its variants."""

    name: str
    task: str
    """`text-classification`, `token-classification`, `embedding`, `cross-encoder` or `text-generation`."""
    variants: tuple[ModelVariant, ...]
    labels: tuple[str, ...]
    """In the order of the model's outputs; empty for embeddings, ranking and generation."""
    multi_label: bool
    """Whether a text can have several labels."""
    max_tokens: int
    """Most tokens, special ones included, that it reads of one text."""
    dimensions: int
    """Length of its vectors; 0 unless it embeds."""
    is_default: bool
    """Whether requests of its task that name no model are answered by it."""
    provenance: str
    """What it was made from."""
    license: str
    """Licence of the weights as stated by their source; empty when not stated."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A model that is new, has changed, or was removed."""

    name: str
    model: Model | None
    """The model as it is now; None when it was removed from the repository."""
