"""Recipes with `task: text-generation`: what to train, how to make it smaller, and what to accept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from millis_server.manifest import EngineName, Name

Rate = Annotated[float, Field(gt=0, lt=1)]
Layer = Annotated[int, Field(ge=1, le=200)]

SCRATCH_RATE = 2e-3
"""Peak of the learning rate for a model of a few million weights that begins with random ones."""

FINETUNE_RATE = 2e-5
"""Peak of the learning rate for a model that has learned already."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Architecture(_Part):
    """A model to train from nothing, of Llama's form (Touvron et al. 2023), with tied embeddings."""

    hidden_size: int = Field(ge=16, le=8192)
    layers: Layer
    heads: int = Field(ge=1, le=128)
    """Query heads of attention; they share the hidden size evenly."""
    kv_heads: int | None = Field(default=None, ge=1, le=128)
    """Heads of keys and values, each for several query heads (Ainslie et al. 2023); without it as many as `heads`."""
    intermediate_size: int = Field(ge=16, le=32768)
    """Width of the feed-forward parts."""
    vocabulary: int = Field(ge=300, le=200_000)
    """Tokens, 256 bytes and 6 special ones included; the tokenizer is trained on the training data."""
    context: int = Field(ge=32, le=131_072)
    """Most tokens of prompt and text together."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"heads: {self.heads} heads of an even size do not make up hidden_size {self.hidden_size}")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads: {self.heads} heads cannot share {self.kv_heads} evenly")
        return self


class DistillDecoder(_Part):
    """Teaches a variant with fewer layers what the whole model predicts on the training data."""

    epochs: int = Field(default=3, ge=1, le=1000)
    learning_rate: Rate = 5e-4
    temperature: float = Field(default=2.0, ge=1, le=20)
    """Softens both sides' distributions (Hinton et al. 2015)."""
    hidden: float = Field(default=0.0, ge=0, le=100)
    """Weight of the distance between the last layers' hidden states (DistilBERT, Sanh et al. 2019); 0 leaves it out."""


class Draft(_Part):
    """A small model that guesses tokens, of which the variant checks several in one step (Leviathan et al. 2023,
    "Fast Inference from Transformers via Speculative Decoding"): the text stays the variant's own."""

    checkpoint: str | None = Field(default=None, min_length=1)
    """A local folder or a hub id, with the same tokenizer as the model."""
    keep_layers: Layer | tuple[Layer, ...] | None = None
    """In place of a checkpoint: the model itself with so many layers, or with those listed."""
    distill: DistillDecoder | None = None
    weights: Literal["fp32", "int8"] = "int8"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.checkpoint is None) == (self.keep_layers is None):
            given = "neither is given" if self.checkpoint is None else "both are given"
            raise ValueError(f"checkpoint: give it or keep_layers; {given}")
        if self.distill is not None and self.keep_layers is None:
            raise ValueError("distill: a checkpoint has learned already; it goes with keep_layers")
        return self

    @property
    def variant(self) -> DecoderVariant:
        """The draft as a variant of its own."""
        return DecoderVariant(name="draft", keep_layers=self.keep_layers, distill=self.distill, weights=self.weights)


class DecoderVariant(_Part):
    """One variant to make. Its steps are taken in the order keep_layers, distill, weights, draft."""

    name: Name
    """Without it made of what the others say, for example `int8` or `layers-6-int8`."""
    keep_layers: Layer | tuple[Layer, ...] | None = None
    """So many layers, spread evenly from first to last, or those listed, counted from 1; the others are dropped."""
    distill: DistillDecoder | None = None
    weights: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    """How weights are stored. OpenVINO GenAI computes in fp32; bf16 is for transformers, which computes in it too."""
    engine: EngineName = "openvino_genai"
    """What generates: OpenVINO GenAI on a CPU, or PyTorch (transformers) on CUDA, and on a CPU for an architecture that
    OpenVINO GenAI does not serve."""
    device: Literal["cpu", "cuda"] = "cpu"
    draft: Draft | None = None
    group_size: int = Field(default=128, ge=16, le=1024)
    """For int4: weights that share a scale; smaller is more exact and larger. Lowered where it does not divide."""
    ratio: float = Field(default=1.0, gt=0, le=1)
    """For int4: share of the inner weights that become int4; the others, embeddings and last layer become int8."""
    symmetric: bool = True
    """Without a zero point for each row (int8) or group (int4); asymmetric is more exact and a little slower."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "name" in values:
            return values
        kept, weights = values.get("keep_layers"), values.get("weights", "fp32")
        parts = [] if kept is None else [f"layers-{len(kept) if isinstance(kept, list | tuple) else kept}"]
        parts += [weights, *(["draft"] if values.get("draft") else [])]
        return {**values, "name": "-".join(map(str, parts))}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.distill is not None and self.keep_layers is None:
            raise ValueError("distill: a variant with all layers has nothing to learn; give keep_layers")
        for key, known in (("group_size", ("int4",)), ("ratio", ("int4",)), ("symmetric", ("int8", "int4"))):
            if key in self.model_fields_set and self.weights not in known:
                raise ValueError(f"{key}: only weights: {' or '.join(known)} knows it, weights is {self.weights}")
        if self.engine == "transformers":
            if self.weights not in ("fp32", "bf16"):
                raise ValueError(f"weights: the engine transformers takes fp32 or bf16, not {self.weights}")
            if self.draft is not None:
                raise ValueError("draft: the engine transformers has none")
        elif self.weights == "bf16" or self.device == "cuda":
            key = "device: cuda" if self.device == "cuda" else "weights: bf16"
            raise ValueError(f"{key} is for the engine transformers, not {self.engine}")
        kept = self.keep_layers
        if isinstance(kept, tuple) and (not kept or list(kept) != sorted(set(kept))):
            raise ValueError(f"keep_layers: layers in rising order, each once, not {list(kept)}")
        return self

    @property
    def plain(self) -> bool:
        """Whether it is the model itself."""
        return self.keep_layers is None and self.weights == "fp32" and self.draft is None


DEFAULT_VARIANTS = (DecoderVariant(name="fp32"), DecoderVariant(name="int8", weights="int8"))
PYTORCH_VARIANTS = (DecoderVariant(name="fp32", engine="transformers"),)


class DecoderRecipe(_Part):
    """One generating model to build."""

    name: Name
    """Logical model name."""
    task: Literal["text-generation"] = "text-generation"
    checkpoint: str | None = Field(default=None, min_length=1)
    """A local folder or a hub id; fine-tuned when `train` is given."""
    architecture: Architecture | None = None
    """In place of a checkpoint: a model to train from nothing on `train`."""
    train: Path | None = None
    """Training data: .jsonl with a dialogue on each line, or .txt. Paths count from the recipe's folder."""
    dev: Path | None = None
    """Data for early stopping; without it `dev_fraction` of the training data is set aside."""
    test: Path | None = None
    """Data that variants are measured on: .jsonl or .txt; without it built-in texts, and no quality is claimed."""
    dataset: str = ""
    """Name of the data set, for report and manifest; the default is the recipe's name."""
    description: str = ""
    license: str = ""
    """Licence of the weights; the default is the checkpoint's."""
    dev_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    epochs: int = Field(default=3, ge=1, le=1000)
    patience: int = Field(default=2, ge=1)
    """Epochs without a smaller loss on the dev data after which training stops."""
    batch_tokens: int = Field(default=2048, ge=64, le=1_000_000)
    """Most tokens in one step of training, padding included."""
    learning_rate: Rate | None = None
    """Peak; it rises over the first steps and falls along a cosine. The default is 2e-3 for an architecture and 2e-5
    for a checkpoint."""
    weight_decay: float = Field(default=0.1, ge=0, lt=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of attention weights and hidden values that training leaves out, where the architecture knows dropout."""
    other_weight: float | None = Field(default=None, ge=0, le=1)
    """Weight in the loss of tokens that the assistant did not write; the default is 0.1 for an architecture, which must
    learn the language from them too, and 0 for a checkpoint."""
    noise: float = Field(default=0.0, ge=0, lt=1)
    """Share of the words of users' messages that each epoch leaves out, so that a small model does not learn them by
    heart; half of the messages also lose capital letters, and half punctuation. 0 changes nothing."""
    seed: int = Field(default=42, ge=0, lt=2**32)
    max_quality_loss: float = Field(default=0.1, ge=0, le=1)
    """Most of its agreement with the PyTorch model's greedy tokens that a variant may lose, absolute; one that loses
    more is not published."""
    max_streams: int = Field(default=8, ge=1, le=1024)
    """Texts that the engine generates side by side."""
    cache_tokens: int | None = Field(default=None, ge=64)
    """Tokens, of all prompts and texts under way, for which the engine has memory; the default is `max_streams` times
    the context, and at most 32768."""
    default_max_tokens: int = Field(default=256, ge=1)
    """Most tokens of a text, unless the request says otherwise; the context is a limit too."""
    variants: tuple[DecoderVariant, ...] = Field(default=DEFAULT_VARIANTS, min_length=1)
    """What to make of the model; without it fp32 and int8."""
    default: bool = False
    """Whether requests of this task that name no model are answered by this one."""
    path: Path = Field(default=Path(), exclude=True)
    digest: str = Field(default="", exclude=True)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.checkpoint is None) == (self.architecture is None):
            given = "neither is given" if self.checkpoint is None else "both are given"
            raise ValueError(f"checkpoint: give it or architecture; {given}")
        if self.architecture is not None and self.train is None:
            raise ValueError("train: an architecture begins with random weights; give data to train it on")
        if self.train is None and self.dev is not None:
            raise ValueError("dev: it is given, and train is not")
        for key in ("train", "dev", "test"):
            path = getattr(self, key)
            if path is not None and path.suffix not in (".jsonl", ".txt"):
                raise ValueError(f"{key}: {path.name} must end in .jsonl (dialogues) or .txt")
        context = self.architecture.context if self.architecture is not None else None
        if context is not None and self.batch_tokens < context:
            raise ValueError(f"batch_tokens: {self.batch_tokens} is less than architecture.context {context}")
        self._check_variants()
        return self

    def _check_variants(self) -> None:
        names = [variant.name for variant in self.variants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"variants: the name {name!r} appears {names.count(name)} times")
        plain = [variant.name for variant in self.variants if variant.plain]
        if plain != ["fp32"]:
            raise ValueError(
                f"variants: without steps are {', '.join(plain) or 'none'}; exactly one must be, {{name: fp32}}, the "
                "reference that is always published"
            )
        for variant in self.variants:
            draft = variant.draft
            if self.train is None and (variant.distill or (draft and draft.distill)):
                raise ValueError(f"variants: {variant.name}: distill: it learns from texts; give train")
            if self.architecture is not None:
                check_layers(variant, self.architecture.layers)

    @property
    def source(self) -> str:
        """The checkpoint as the user named it, or that there is none."""
        return self.checkpoint or "random weights"

    @property
    def becomes_graphs(self) -> bool:
        """Whether any variant is converted to a graph."""
        return any(variant.engine == "openvino_genai" for variant in self.variants)

    @property
    def peak_rate(self) -> float:
        """The learning rate, or its default."""
        return self.learning_rate or (FINETUNE_RATE if self.architecture is None else SCRATCH_RATE)

    @property
    def unwritten_weight(self) -> float:
        """Weight in the loss of tokens that the assistant did not write."""
        if self.other_weight is not None:
            return self.other_weight
        return 0.0 if self.architecture is None else 0.1


def check_layers(variant: DecoderVariant, depth: int) -> None:
    """Checks that the layers a variant keeps are in the model.

    Args:
        variant: to check.
        depth: layers of the model.

    Raises:
        ValueError: it keeps too many, or one that there is not.
    """
    if variant.draft is not None:
        check_layers(variant.draft.variant.model_copy(update={"name": f"{variant.name}: draft"}), depth)
    kept = variant.keep_layers
    if kept is None:
        return
    count, last = (kept, kept) if isinstance(kept, int) else (len(kept), kept[-1])
    if count >= depth or last > depth:
        raise ValueError(
            f"variants: {variant.name}: keep_layers: the model has {depth} layers; keep fewer, counted from 1"
        )
