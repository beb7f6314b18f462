"""Loads a Hugging Face checkpoint as a module with one output, whatever its family and layout.

The layout of sentence-transformers (pooling, normalisation, maximal length) is honoured by loading
it with that library.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)
from transformers.utils.logging import disable_progress_bar

from millis_pipeline.classifier import MARKER_FILE, MeanPoolClassifier
from millis_pipeline.sentence_config import CONFIG_FILE, SentenceConfig, read_sentence_config
from millis_server.manifest import TaskName, TensorName

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "spm.model", "sentencepiece.bpe.model")
UNLIMITED_TOKENS = 100_000
"""transformers writes a huge number where a tokenizer knows no limit."""

ROBERTA_FAMILY = ("roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "data2vec-text", "mpnet", "longformer")
"""Families that begin to count positions after the padding id, so that they read fewer tokens than positions."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message is one line and names the folder and the file."""


@dataclass(frozen=True)
class Answers:
    """What a classifier can answer.

    Attributes:
        source: checkpoint as the user named it.
        labels: in the order of the outputs.
        multi_label: whether a text can have several labels.
    """

    source: str
    labels: tuple[str, ...]
    multi_label: bool


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        source: what the user named.
        task: what it answers.
        module: takes `inputs` as INT64 [texts, tokens] and returns the task's output, see manifest.OUTPUT_NAMES.
        tokenizer: its fast tokenizer.
        inputs: names of the module's arguments, in order.
        labels: in the order of the outputs.
        multi_label: whether a text can have several labels.
        max_tokens: most tokens of an input, special ones included.
        dimensions: length of its vectors; 0 unless it embeds.
        normalized: whether its vectors have length 1.
        activation: what turns a cross-encoder's logit into a score.
        license: as its model card says, or empty.
    """

    source: str
    task: TaskName
    module: nn.Module
    tokenizer: PreTrainedTokenizerFast
    inputs: tuple[TensorName, ...]
    max_tokens: int
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    dimensions: int = 0
    normalized: bool = False
    activation: Literal["sigmoid", "identity"] = "identity"
    license: str = ""

    @property
    def answers(self) -> Answers:
        """What it can answer, of a classifier."""
        return Answers(self.source, self.labels, self.multi_label)


class Logits(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """A transformers model with a head, reduced to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [texts, labels], or [texts, tokens, labels]."""
        given = {"input_ids": input_ids, "token_type_ids": token_type_ids, "inputs_embeds": inputs_embeds}
        named = {name: tensor for name, tensor in given.items() if tensor is not None}
        logits: torch.Tensor = self.model(attention_mask=attention_mask, **named).logits
        return logits


class _SentenceVector(nn.Module):  # type: ignore[misc]  # torch is not followed: its types cost mypy minutes
    """A sentence-transformers model, reduced to its vector."""

    def __init__(self, model: SentenceTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        vector: torch.Tensor = self.model(features)["sentence_embedding"]
        return vector[:, : self.model.truncate_dim]


def load(source: str, folder: Path, task: TaskName | None = None) -> Checkpoint:
    """Loads a checkpoint for a task.

    Args:
        source: what the user named, for messages and the manifest.
        folder: from `sources.resolve`.
        task: None takes the one that the checkpoint's architecture implies.

    Raises:
        CheckpointError: files are missing, the task does not fit, or the tokenizer is not a fast one.
    """
    tokenizer = load_tokenizer(source, folder)
    task = task or infer_task(source, folder)
    stated = _sentence_config(source, folder)
    if stated.prompt:
        raise CheckpointError(
            f"checkpoint {source}: its default prompt {stated.prompt!r} goes before every text, which is not "
            f"supported; set default_prompt_name to null in its {CONFIG_FILE} and let callers send the prompt"
        )
    if task == "embedding" and stated.kind not in ("", "SentenceTransformer"):
        raise CheckpointError(f"checkpoint {source}: it is a {stated.kind} ({CONFIG_FILE}), which gives no embeddings")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()
    try:
        if task == "embedding":
            return _load_embedding(source, folder, tokenizer)
        return _load_head(source, folder, tokenizer, task, stated)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {source}: {one_line(error)}") from error


def infer_task(source: str, folder: Path) -> TaskName:
    """Tells the task from the checkpoint's files.

    Raises:
        CheckpointError: the files do not say.
    """
    if (folder / "modules.json").is_file() and _sentence_config(source, folder).kind != "CrossEncoder":
        return "embedding"
    config = _config(source, folder)
    architecture = (getattr(config, "architectures", None) or [""])[0]
    if (folder / MARKER_FILE).is_file():
        return "text-classification"
    if architecture.endswith("ForCausalLM") or architecture == "GPT2LMHeadModel":
        return "text-generation"
    if architecture.endswith("ForTokenClassification"):
        return "token-classification"
    if architecture.endswith("ForSequenceClassification"):
        return "cross-encoder" if config.num_labels == 1 else "text-classification"
    raise CheckpointError(
        f"checkpoint {source}: its architecture ({architecture or 'not stated'}) does not say what it answers; "
        "give --task"
    )


def answers_of(source: str, folder: Path, task: TaskName) -> Answers:
    """What a checkpoint with a head for a task answers, from its config.json.

    Raises:
        CheckpointError: it has no such head.
    """
    config = _config(source, folder)
    suffix = "ForTokenClassification" if task == "token-classification" else "ForSequenceClassification"
    architecture = (config.architectures or [""])[0]
    if not architecture.endswith(suffix) and not (folder / MARKER_FILE).is_file():
        raise CheckpointError(
            f"checkpoint {source}: {architecture or 'its architecture'} has no trained head for {task}; "
            "fine-tune it with a recipe first"
        )
    labels = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return Answers(source, labels, config.problem_type == "multi_label_classification")


def _load_head(
    source: str, folder: Path, tokenizer: PreTrainedTokenizerFast, task: TaskName, stated: SentenceConfig
) -> Checkpoint:
    config = _config(source, folder)
    answers = answers_of(source, folder, task)
    if (folder / MARKER_FILE).is_file():
        module: nn.Module = MeanPoolClassifier.load(folder)
    else:
        kind = AutoModelForTokenClassification if task == "token-classification" else AutoModelForSequenceClassification
        module = Logits(kind.from_pretrained(folder))
    labels = answers.labels
    if task == "cross-encoder" and len(labels) != 1:
        raise CheckpointError(f"checkpoint {source}: a cross-encoder has 1 output, this one has {len(labels)}")
    pairs = task == "cross-encoder" and getattr(config, "type_vocab_size", 0) > 1
    with_types = pairs and "token_type_ids" in tokenizer.model_input_names
    return Checkpoint(
        source=source,
        task=task,
        module=module.eval(),
        tokenizer=tokenizer,
        inputs=("input_ids", "attention_mask", "token_type_ids") if with_types else ("input_ids", "attention_mask"),
        max_tokens=token_limit(config, tokenizer),
        labels=() if task == "cross-encoder" else labels,
        multi_label=answers.multi_label,
        activation=_activation(source, stated, config) if task == "cross-encoder" else "identity",
        license=checkpoint_license(folder),
    )


def _load_embedding(source: str, folder: Path, tokenizer: PreTrainedTokenizerFast) -> Checkpoint:
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    config = model[0].auto_model.config
    limit = model.max_seq_length or UNLIMITED_TOKENS
    return Checkpoint(
        source=source,
        task="embedding",
        module=_SentenceVector(model).eval(),
        tokenizer=tokenizer,
        inputs=("input_ids", "attention_mask"),
        max_tokens=min(limit, token_limit(config, tokenizer, stated=limit)),
        dimensions=int(model.get_embedding_dimension() or 0),
        # What is cut after it has length 1 is shorter.
        normalized=model.truncate_dim is None and any(type(part).__name__ == "Normalize" for part in model),
        license=checkpoint_license(folder),
    )


def load_tokenizer(source: str, folder: Path) -> PreTrainedTokenizerFast:
    """Loads the tokenizer of a checkpoint.

    Raises:
        CheckpointError: it has none, or none that is fast.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise CheckpointError(f"checkpoint {source}: it has no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise whatever the file makes them raise
        raise CheckpointError(f"checkpoint {source}: its tokenizer cannot be read: {one_line(error)}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"checkpoint {source}: {type(tokenizer).__name__} has no fast version (tokenizer.json)")
    return tokenizer


def _config(source: str, folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {source}: config.json: {one_line(error)}") from error


def _sentence_config(source: str, folder: Path) -> SentenceConfig:
    try:
        return read_sentence_config(folder)
    except ValueError as error:
        raise CheckpointError(f"checkpoint {source}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The message of a library's error, which may be a page."""
    return " ".join(str(error).split())[:300]


def token_limit(config: Any, tokenizer: PreTrainedTokenizerFast, stated: int = UNLIMITED_TOKENS) -> int:
    """The smallest limit that the checkpoint states; the tokenizer's is left aside where another one is stated."""
    positions = getattr(config, "max_position_embeddings", 0) or UNLIMITED_TOKENS
    if config.model_type in ROBERTA_FAMILY:
        positions -= (config.pad_token_id or 0) + 1
    written = tokenizer.model_max_length if stated == UNLIMITED_TOKENS else stated
    limit = min(positions, written, stated)
    return 512 if limit >= UNLIMITED_TOKENS else int(limit)


def _activation(source: str, stated: SentenceConfig, config: Any) -> Literal["sigmoid", "identity"]:
    """Sigmoid unless the checkpoint says otherwise: the default of sentence-transformers for one output."""
    older = (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
    oldest = getattr(config, "sbert_ce_default_activation_function", None)
    name = stated.activation or older or oldest or "Sigmoid"
    last = name.rpartition(".")[2]
    if last == "Sigmoid":
        return "sigmoid"
    if last == "Identity":
        return "identity"
    raise CheckpointError(f"checkpoint {source}: its activation {name!r} is neither Sigmoid nor Identity")


def checkpoint_license(folder: Path) -> str:
    """The licence in the front matter of the model card."""
    try:
        card = (folder / "README.md").read_text("utf-8").splitlines()
    except OSError:
        return ""
    for line in card[1:60]:
        if line.startswith("license:"):
            return line.partition(":")[2].strip()
        if line == "---":
            break
    return ""
