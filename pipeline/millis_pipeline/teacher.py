"""What the teacher says of every text, computed once and kept on the disk: training never runs the teacher again."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.examples import Example, pad

BATCH = 32
MASKED = 0.1
"""Share of the tokens of a noisy copy that are masked."""

JOINED = 0.25
"""Share of the noisy copies that end as another text does."""


@dataclass(frozen=True)
class Lesson(Example):
    """A text with where the teacher's outputs for it begin.

    Attributes:
        token: row of its first token in the hidden states.
        output: row of its first output: of a token for token classification, else of the text.
    """

    token: int
    output: int


@dataclass(frozen=True)
class Teaching:
    """All texts with the teacher's outputs, in files that are read where they are needed.

    Attributes:
        lessons: the texts.
        outputs: FLOAT [rows, labels or dimensions], of all texts one after the other.
        hidden: for each layer asked for (counted from 0) its FLOAT16 output [tokens, hidden size].
        per_token: whether `outputs` has a row for each token.
        pad_id: token id that fills shorter rows.
    """

    lessons: Sequence[Lesson]
    outputs: NDArray[np.float32]
    hidden: dict[int, NDArray[np.float16]]
    per_token: bool
    pad_id: int

    def outputs_of(self, batch: Sequence[Lesson]) -> torch.Tensor:
        """Rows of the texts of a batch, one after the other, padding left out."""
        return _rows(self.outputs, [(x.output, len(x.ids) if self.per_token else 1) for x in batch])

    def hidden_of(self, batch: Sequence[Lesson], layer: int) -> torch.Tensor:
        """FLOAT [tokens, hidden size] of the texts of a batch, one after the other, padding left out."""
        return _rows(self.hidden[layer], [(x.token, len(x.ids)) for x in batch]).float()


def _rows(values: NDArray[Any], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([values[start : start + count] for start, count in spans]))


def teach(
    checkpoint: Checkpoint, examples: Sequence[Example], layers: Sequence[int], scratch: Path, what: str
) -> Teaching:
    """Runs the teacher once over all texts.

    Args:
        checkpoint: the teacher.
        examples: tokenized texts.
        layers: whose outputs are kept, counted from 0.
        scratch: folder for the files.
        what: for the progress bar.
    """
    per_token = checkpoint.task == "token-classification"
    encoder = Encoder(checkpoint.module)
    tokens = sum(len(example.ids) for example in examples)
    width = encoder.base.config.hidden_size
    hidden = {layer: _file(scratch / f"{what}-{layer}.raw", np.float16, tokens, width) for layer in layers}
    columns = checkpoint.dimensions or len(checkpoint.labels)
    outputs = _file(scratch / f"{what}-outputs.raw", np.float32, tokens if per_token else len(examples), columns)
    lessons: list[Lesson] = []
    pad_id = checkpoint.tokenizer.pad_token_id or 0
    token = row = 0
    ordered = sorted(examples, key=lambda example: len(example.ids))
    with tqdm(total=len(ordered), desc=what, unit="text", leave=False, disable=None) as progress:
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            ids, mask = pad(batch, pad_id)
            with torch.inference_mode(), captured(encoder, layers) as states:
                output = checkpoint.module(ids, mask)
            real = mask.bool()
            flat = output[real] if per_token else output
            outputs[row : row + len(flat)] = flat.numpy()
            for layer in layers:
                state = states[layer][real]
                hidden[layer][token : token + len(state)] = state.to(torch.float16).numpy()
            for example in batch:
                lessons.append(Lesson(example.ids, example.target, example.gold, example.words, token, row))
                token += len(example.ids)
                row += len(example.ids) if per_token else 1
            progress.update(len(batch))
    return Teaching(lessons, outputs, hidden, per_token, pad_id)


@contextmanager
def captured(encoder: Encoder, layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Outputs [texts, tokens, hidden size] of some layers, filled when the model runs inside the block."""
    states: dict[int, torch.Tensor] = {}

    def hook(index: int) -> Any:
        def keep(_module: nn.Module, _inputs: object, output: Any) -> None:
            states[index] = output[0] if isinstance(output, tuple) else output

        return keep

    handles = [encoder.layers[index].register_forward_hook(hook(index)) for index in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def noisy(examples: Sequence[Example], copies: int, tokenizer: Any, seed: int) -> list[Example]:
    """Copies of texts, changed and without a label: what the teacher says of them is new to the student.

    Tokens are masked, and some texts end as another one does: after Tang et al. 2019 ("Distilling Task-Specific
    Knowledge from BERT into Simple Neural Networks"), who mask words and draw n-grams; on token ids, so that no
    tokenizer must be run backwards.
    """
    generator = random.Random(seed)
    mask = tokenizer.mask_token_id if tokenizer.mask_token_id is not None else tokenizer.unk_token_id
    special = set(tokenizer.all_special_ids)
    made = []
    for _ in range(copies):
        for example in examples:
            ids = example.ids
            if generator.random() < JOINED:
                other = generator.choice(examples).ids
                ids = ids[: len(ids) // 2] + other[len(other) // 2 :]
            changed = [
                mask if token not in special and mask is not None and generator.random() < MASKED else token
                for token in ids
            ]
            made.append(Example(changed, None, [], []))
    return made


def _file(path: Path, kind: Any, rows: int, columns: int) -> NDArray[Any]:
    return np.memmap(path, mode="w+", dtype=kind, shape=(rows, columns))
