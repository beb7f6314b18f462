"""What a recipe may ask for under `variants:`: for each variant a name and the steps that make it from the teacher.

The steps are taken in the order distill, prune, exits, trim, and then one of quantize, precision and compile. All of
them compose, but for compile with exits. A variant without steps is the teacher itself in fp32.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from millis_server.manifest import Name

Share = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Distill(_Step):
    """Fewer layers, taught by the fine-tuned model."""

    layers: int = Field(ge=1, le=48)
    """Layers of the student."""
    from_layers: tuple[int, ...] = ()
    """Layers of the teacher that the student's begin as, counted from 1; without it they are spread evenly."""
    epochs: int = Field(default=10, ge=1, le=1000)
    learning_rate: Rate = 5e-4
    temperature: float = Field(default=2.0, ge=1, le=20)
    """Softens both sides' distributions (Hinton et al. 2015), so that small logits teach as well."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.from_layers and len(self.from_layers) != self.layers:
            raise ValueError(f"from_layers: it names {len(self.from_layers)} layers, layers says {self.layers}")
        if list(self.from_layers) != sorted(set(self.from_layers)) or min(self.from_layers, default=1) < 1:
            raise ValueError("from_layers: layers are counted from 1, in rising order, each once")
        return self


class Prune(_Step):
    """Narrower and fewer layers, chosen by what they contribute on the training data."""

    heads: Share = 0.0
    """Share of all attention heads to remove; every layer keeps at least one."""
    ffn: Share = 0.0
    """Share of all feed-forward neurons to remove; every layer keeps at least 32."""
    layers: int = Field(default=0, ge=0, le=48)
    """Whole layers to remove."""
    epochs: int = Field(default=4, ge=0, le=1000)
    """Passes of recovery training on the teacher's outputs."""
    learning_rate: Rate = 2e-4
    temperature: float = Field(default=2.0, ge=1, le=20)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not (self.heads or self.ffn or self.layers):
            raise ValueError("it removes nothing; give heads, ffn or layers")
        return self


class Exits(_Step):
    """Heads after some layers, at which a text that is easy is answered; calibrated on data that is set aside."""

    after: tuple[Annotated[int, Field(ge=1, le=48)], ...] = Field(min_length=1, max_length=3)
    """Layers with a head, counted from 1."""
    max_loss: float = Field(default=0.005, ge=0, le=1)
    """Most that leaving early may cost, on the data set aside, against going all the way, absolute."""
    epochs: int = Field(default=4, ge=1, le=1000)
    """Passes of training all heads and layers together on the teacher's outputs and the labels."""
    learning_rate: Rate = 2e-4
    temperature: float = Field(default=2.0, ge=1, le=20)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if list(self.after) != sorted(set(self.after)):
            raise ValueError(f"after: layers in rising order, each once, not {list(self.after)}")
        return self


class Trim(_Step):
    """A smaller vocabulary: for models, mostly multilingual ones, whose embeddings are most of their size."""

    min_count: int = Field(default=1, ge=1)
    """How often a token must be in the training and unlabelled texts to be kept."""


class Quantize(_Step):
    """8-bit weights and activations. `quantize: dynamic` is short for `quantize: {method: dynamic}`."""

    method: Literal["dynamic", "static"]
    """Activations scaled for each call, or once by calibration on texts of the training data."""
    keep_fp32: Annotated[int, Field(ge=0, le=96)] | Literal["auto"] | tuple[str, ...] = 0
    """Blocks (attention or feed-forward part of a layer, or the head; with exits all heads are one) that stay in fp32:
    so many that quantization harms most, which takes a pass over texts to find, or those named, for example `layer 1
    feed-forward`. `auto` keeps as few as it takes for the answers to training texts, at every exit, to change by no
    more than `max_quality_loss`."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"method": value} if isinstance(value, str) else value

    @property
    def needs_texts(self) -> bool:
        """Whether it calibrates, or looks for the blocks that are harmed most."""
        searched = self.keep_fp32 == "auto" or (isinstance(self.keep_fp32, int) and self.keep_fp32 > 0)
        return self.method == "static" or searched


class VariantRecipe(_Step):
    """One variant to make."""

    name: Name
    distill: Distill | None = None
    prune: Prune | None = None
    exits: Exits | None = None
    trim: Trim | None = None
    quantize: Quantize | None = None
    precision: Literal["bf16"] | None = None
    """Computes in bfloat16, with the engine `openvino`, on processors that have it: less time than fp32, and nearer to
    its answers than 8 bits. Where this machine's processor does not, the variant is left out."""
    compile: Literal["torch"] | None = None
    """Also compiles it ahead of time for the engine `torch`, which a config.pbtxt may then name; takes a minute."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.distill is not None and self.prune is not None and self.prune.layers:
            raise ValueError("prune.layers: distill.layers says already how many layers there will be")
        if self.compile is not None:
            self._check_compilable()
        if self.precision is not None and self.quantize is not None:
            raise ValueError(
                "precision: bf16 does not go with quantize: the engine openvino, the only one with bfloat16, runs int8 "
                "graphs slower than onnxruntime"
            )
        return self

    def _check_compilable(self) -> None:
        if self.quantize is not None:
            raise ValueError("compile: torch does not go with quantize, which makes int8 of the ONNX graph alone")
        if self.exits is not None:
            raise ValueError(
                "compile: torch does not go with exits: its engine runs one program, not one for each exit"
            )
        if self.precision is not None:
            raise ValueError("compile: torch does not go with precision: its engine computes in fp32 only")

    @property
    def trained(self) -> bool:
        """Whether making it needs texts to train on."""
        return self.distill is not None or self.prune is not None or self.exits is not None

    @property
    def plain(self) -> bool:
        """Whether it is the teacher itself."""
        return not self.trained and (self.trim, self.quantize, self.precision) == (None, None, None)

    @property
    def needs_texts(self) -> bool:
        """Whether making it needs texts at all: to train on, to count tokens, to calibrate, to measure sensitivity."""
        return self.trained or self.trim is not None or (self.quantize is not None and self.quantize.needs_texts)


FP32 = VariantRecipe(name="fp32")
INT8 = VariantRecipe(name="int8", quantize=Quantize(method="dynamic"))
DEFAULT_VARIANTS = (FP32, INT8)


def check_family(variants: tuple[VariantRecipe, ...]) -> None:
    """Checks what holds between the variants of one model.

    Raises:
        ValueError: two have one name, or there is not exactly one without steps.
    """
    names = [variant.name for variant in variants]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"variants: the name {name!r} appears {names.count(name)} times")
    plain = [variant.name for variant in variants if variant.plain]
    if len(plain) != 1:
        raise ValueError(
            f"variants: {len(plain)} are without steps ({', '.join(plain) or 'none'}); exactly 1 must be, "
            "the reference that is always published, for example {name: fp32}"
        )
