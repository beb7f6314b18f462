"""The manifest: what a published model version says about itself.

It is the only contract between the pipeline, which writes it, and the gateway,
which reads it. One lies beside the weights in every version folder:

    model_repository/intent-int8/          one folder per variant
      config.pbtxt
      1/model.onnx  tokenizer.json  manifest.json

so that weights, tokenizer, labels and limits always change together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

WEIGHTS_FILE = "model.onnx"
TOKENIZER_FILE = "tokenizer.json"
COMPILED_FILE = "model.pt2"
"""The same graph compiled for the engine `torch`; not every version has it."""

TaskName = Literal["text-classification", "token-classification", "embedding", "cross-encoder", "text-generation"]
TensorName = Literal["input_ids", "attention_mask", "token_type_ids"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
"""A model or variant name: it becomes a folder, so it is held to what every file system takes."""

OUTPUT_NAMES: dict[TaskName, str] = {
    "text-classification": "logits",
    "token-classification": "logits",
    "embedding": "sentence_embedding",
    "cross-encoder": "logits",
    "text-generation": "text_output",
}
"""Output tensor of each task. `logits` is [texts, labels], for tokens [texts, tokens, labels] and for a
cross-encoder [texts, 1]; `sentence_embedding` is [texts, dimensions]; `text_output` comes piece by piece."""

Protocol = Literal["millis", "vllm", "tensorrt-llm"]
"""Whose tensors a generating model in Triton speaks, see triton/protocols.py."""

EngineName = Literal["openvino_genai", "transformers"]
"""What generates in our own backend, see triton/generation_backend/decoding/generator.py."""

Precision = Literal["f32", "bf16"]
"""What is computed in where nothing is quantized; bf16 needs a processor that has it, and the engine `openvino`."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Quality(_Part):
    """What the variant was measured to be worth on labelled (or teacher-labelled) data."""

    metric: str
    """For example `accuracy`, `entity_f1` or `cosine_to_teacher`."""
    value: float = Field(ge=0, le=1)
    """The higher, the better; a correlation below 0 is told as 0."""
    low: float = Field(ge=0, le=1)
    """Lower end of the 95 % confidence interval."""
    high: float = Field(ge=0, le=1)
    """Upper end of the 95 % confidence interval."""
    examples: int = Field(ge=1)
    dataset: str


class LatencyPoint(_Part):
    """Time of one engine call with one thread, in milliseconds, and the memory that it needs."""

    batch: int = Field(ge=1)
    tokens: int = Field(ge=1)
    p50_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)
    memory_bytes: int = Field(default=0, ge=0)
    """Resident memory of the loaded graphs after this call and all smaller ones; 0 when not measured."""


class LatencyProfile(_Part):
    """Latency of the bare engine where the variant was published."""

    machine: str
    """Processor and number of cores."""
    engine: str
    """For example `onnxruntime 1.32.0`."""
    threads: int = Field(ge=1)
    points: tuple[LatencyPoint, ...]


class Exit(_Part):
    """One graph of a variant with early exits, and who leaves after it."""

    file: str
    """In the version folder."""
    layers: int = Field(ge=1)
    """Layers of the model that an input has gone through after this graph."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Lowest confidence, calibrated on held-out data, at which an input is answered here; None for the last graph."""
    share: float = Field(ge=0, le=1)
    """Of the inputs of the evaluation data that were answered here."""


class Provenance(_Part):
    """Where the model comes from."""

    checkpoint: str
    """Folder name or hub id of the checkpoint that was fine-tuned or exported."""
    dataset: str = ""
    recipe: str = ""
    """SHA-256 of the recipe, hexadecimal; empty when built from a checkpoint alone."""
    created_at: str
    """ISO 8601, UTC."""
    steps: tuple[str, ...] = ()
    """What was done to the fine-tuned model to make this variant, in order, in words; empty for the model itself."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Versions of the libraries that made it."""
    license: str = ""


class SelfCheck(_Part):
    """One input with the answer that the exporting process got for it.

    The gateway asks a freshly loaded version the same and compares before the version takes traffic.
    """

    text: str
    pair: str | None = None
    """Second text, for a cross-encoder."""
    expected: tuple[float, ...]
    """The flattened output for this input (for tokens: the first token's logits, `[CLS]`)."""


class GreedyCheck(_Part):
    """A prompt with the tokens that the exporting process got for it, always taking the most likely one."""

    prompt: tuple[int, ...] = Field(min_length=1)
    expected: tuple[int, ...] = Field(min_length=1)


class Generation(_Part):
    """What is particular to a language model that generates text."""

    protocol: Protocol = "millis"
    engine: EngineName = "openvino_genai"
    """Of our own backend."""
    device: Literal["cpu", "cuda"] = "cpu"
    kv_cache_precision: Literal["f32", "bf16", "u8"] = "u8"
    """Of the engine's memory: with f32 the tokens of fp32 weights are exactly PyTorch's."""
    draft: str = ""
    """Folder, inside the version's, of a small model that guesses tokens; empty is none."""
    weights: tuple[str, ...] = Field(min_length=1)
    """Files of the model in the version folder; for vLLM and TensorRT-LLM their engine arguments."""
    vocabulary: int = Field(ge=1)
    """Number of tokens; ids are below it."""
    chat_template: str = ""
    """The checkpoint's Jinja template that turns a conversation into a prompt; empty when it has none."""
    special_tokens: dict[str, str] = Field(default_factory=dict)
    """Texts that the template may name, for example `bos_token`."""
    eos_ids: tuple[int, ...] = Field(min_length=1)
    """Tokens that end a text."""
    default_max_tokens: int = Field(default=256, ge=1)
    """Most tokens to generate, unless the request says otherwise."""
    max_streams: int = Field(default=8, ge=1)
    """Sequences generated side by side; what comes beyond them waits in the gateway."""
    cache_tokens: int = Field(ge=1)
    """Tokens, of prompts and texts together, for which the engine has memory at once."""
    guided: bool = False
    """Whether it can hold its text to a JSON schema, a regular expression or choices."""
    checks: tuple[GreedyCheck, ...] = ()
    """What a freshly loaded version must answer; an engine that rounds in another way may leave them out."""


class Manifest(_Part):
    """Everything the gateway needs to serve one version of one variant."""

    format: Literal[1] = 1
    model: Name
    """Logical model name, for example `intent`."""
    variant: Name
    """For example `fp32` or `int8`."""
    task: TaskName
    labels: tuple[str, ...] = ()
    """In the order of the outputs. For tokens with `B-` and `I-` prefixes and `O`."""
    multi_label: bool = False
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Lowest score of a label of a multi-label model, unless the request says otherwise."""
    max_tokens: int = Field(ge=4)
    """Most tokens of one input, special ones included; of a model that generates those of its text as well."""
    pad_id: int = Field(default=0, ge=0)
    inputs: tuple[TensorName, ...] = ()
    """Input tensors of the graph, each INT64 [texts, tokens]; empty for a model that generates."""
    dimensions: int = Field(default=0, ge=0)
    """Length of the vectors of an embedding model."""
    normalized: bool = False
    """Whether the vectors of an embedding model leave the graph with length 1."""
    activation: Literal["sigmoid", "identity"] = "identity"
    """What turns a cross-encoder's logit into its score."""
    default_variant: bool = False
    """Whether requests without wishes are answered by this variant."""
    default_for_task: bool = False
    """Whether requests of this task that name no model are answered by this model."""
    files: dict[str, str]
    """SHA-256 of each file in the version folder, hexadecimal."""
    size_bytes: int = Field(ge=1)
    """Size of the graphs."""
    memory_bytes: int = Field(default=0, ge=0)
    """Resident memory of the loaded graphs after one text of 64 tokens, or the longest that it reads, where the variant
    was published; 0 when not measured."""
    quality: Quality | None = None
    """None when published without evaluation data."""
    latency: LatencyProfile | None = None
    provenance: Provenance
    weight_bits: Literal[0, 7, 8] = 0
    """Of int8 weights; 0 where none are quantized, or it is not known. 8 need a processor with VNNI."""
    precision: Precision = "f32"
    """Of a model that does not generate."""
    exits: tuple[Exit, ...] = ()
    """Graphs of a variant with early exits, in order; empty for one that is a single graph."""
    generation: Generation | None = None
    """Only, and always, for a model that generates."""
    self_check: tuple[SelfCheck, ...] = ()
    """At least one, but for a model that generates, which has `generation.checks`."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest absolute difference from `expected` that passes."""

    @property
    def triton_model(self) -> str:
        """Name of the variant's folder, which is its model name in Triton."""
        return f"{self.model}-{self.variant}"

    @property
    def output(self) -> str:
        """Name of the output tensor."""
        return OUTPUT_NAMES[self.task]

    @property
    def graphs(self) -> tuple[str, ...]:
        """Files of the graphs, in the order in which an input goes through them."""
        if self.generation is not None:
            return self.generation.weights
        return tuple(exit.file for exit in self.exits) or (WEIGHTS_FILE,)

    @property
    def per_token(self) -> bool:
        """Whether the output has a row for each token, and not one for each text."""
        return self.task == "token-classification"

    @model_validator(mode="after")
    def _fits_its_task(self) -> Manifest:
        if self.task in ("text-classification", "token-classification"):
            if len(self.labels) < 1:
                raise ValueError(f"labels: a {self.task} model needs at least one")
            if len(set(self.labels)) != len(self.labels):
                raise ValueError("labels: a name appears twice")
        if self.task == "embedding" and self.dimensions < 1:
            raise ValueError("dimensions: an embedding model needs at least 1")
        if (self.task == "text-generation") != (self.generation is not None):
            raise ValueError(f"generation: a model for {self.task} {'has none' if self.generation else 'needs it'}")
        if self.generation is None:
            if "input_ids" not in self.inputs:
                raise ValueError("inputs: input_ids is missing")
            if not self.self_check:
                raise ValueError("self_check: at least 1 is needed")
        if self.exits:
            self._check_exits()
        for name in (*self.graphs, TOKENIZER_FILE):
            if name not in self.files:
                raise ValueError(f"files: the digest of {name} is missing")
        return self

    def _check_exits(self) -> None:
        if self.task not in ("text-classification", "token-classification"):
            raise ValueError(f"exits: a model for {self.task} cannot have any")
        if len(self.exits) < 2:
            raise ValueError("exits: 1 graph is no cascade; at least 2 are needed")
        layers = [exit.layers for exit in self.exits]
        if layers != sorted(set(layers)):
            raise ValueError(f"exits: layers must rise from graph to graph, not {layers}")
        *early, last = (exit.threshold for exit in self.exits)
        if None in early or last is not None:
            raise ValueError("exits: every graph but the last needs a threshold, and the last has none")
