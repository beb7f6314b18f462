"""Runs a model, in PyTorch or in ONNX Runtime, over many inputs: what verification and evaluation compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from tqdm import tqdm

from millis_pipeline.checkpoint import Checkpoint
from millis_server.manifest import Precision
from millis_server.triton.backend.cascade import Stage
from millis_server.triton.backend.engine import DEFAULT_ENGINES, EngineOptions, load_engine
from millis_server.triton.backend.microbatch import run_unpadded

Feeds = dict[str, NDArray[np.int64]]
Runner = Callable[[Feeds], NDArray[np.float32]]

BATCH = 16


@dataclass(frozen=True)
class Rows:
    """Inputs ready for a model.

    Attributes:
        encodings: tokenized inputs, cut to the model's limit.
        pad_id: token id that fills shorter rows.
    """

    encodings: Sequence[Encoding]
    pad_id: int

    def feeds(self, indices: Sequence[int], names: Sequence[str]) -> Feeds:
        """Tensors [rows, tokens] of some inputs, padded on the right to the longest."""
        chosen = [self.encodings[index] for index in indices]
        width = max(len(encoding.ids) for encoding in chosen)
        feeds = {name: np.zeros((len(chosen), width), np.int64) for name in names}
        feeds["input_ids"] += self.pad_id
        for row, encoding in enumerate(chosen):
            length = len(encoding.ids)
            feeds["input_ids"][row, :length] = encoding.ids
            feeds["attention_mask"][row, :length] = 1
            if "token_type_ids" in feeds:
                feeds["token_type_ids"][row, :length] = encoding.type_ids
        return feeds

    def first(self, count: int) -> Rows:
        """The first inputs alone."""
        return Rows(self.encodings[:count], self.pad_id)


def tokenize(
    tokenizer: Tokenizer, inputs: Sequence[str] | Sequence[tuple[str, str]], max_tokens: int, pad_id: int
) -> Rows:
    """Tokenizes inputs as the gateway does: cut at the end (of the second text of a pair), never padded."""
    cutting = Tokenizer.from_str(tokenizer.to_str())
    pairs = bool(inputs) and isinstance(inputs[0], tuple)
    cutting.enable_truncation(max_tokens, strategy="only_second" if pairs else "longest_first")
    return Rows(cutting.encode_batch(list(inputs)), pad_id)


def torch_runner(checkpoint: Checkpoint) -> Runner:
    """Runs the checkpoint itself: the reference."""

    def run(feeds: Feeds) -> NDArray[np.float32]:
        with torch.inference_mode():
            output = checkpoint.module(*(torch.from_numpy(feeds[name]) for name in checkpoint.inputs))
        result: NDArray[np.float32] = output.float().numpy()
        return result

    return run


def graph_runner(path: Path, threads: int = 0, precision: Precision = "f32") -> Runner:
    """Runs an exported graph.

    Args:
        path: of the graph.
        threads: of the engine; 0 is one for each core.
        precision: in which it computes.
    """
    engine = load_engine(DEFAULT_ENGINES[precision], path, EngineOptions(threads=threads, precision=precision))

    def run(feeds: Feeds) -> NDArray[np.float32]:
        return engine.run(feeds)[0]

    return run


def load_cascade(
    graphs: Sequence[Path],
    layers: Sequence[int],
    thresholds: Sequence[float | None] = (),
    precision: Precision = "f32",
) -> list[Stage]:
    """Loads graphs as the backend does; without thresholds nobody leaves.

    Args:
        graphs: in the order in which an input goes through them.
        layers: gone through after each.
        thresholds: of each, None for the last.
        precision: in which they compute.
    """
    options = EngineOptions(threads=0, precision=precision)
    engines = [load_engine(DEFAULT_ENGINES[precision], path, options) for path in graphs]
    wanted = thresholds or [*[inf] * (len(graphs) - 1), None]
    return [Stage(*each) for each in zip(engines, layers, wanted, strict=True)]


class CascadeRunner:
    """Runs a cascade as the backend does, and counts where texts leave.

    Args:
        stages: its graphs.

    Attributes:
        left: texts by the number of layers they went through.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        self._stages = stages
        self.left: Counter[int] = Counter()

    def __call__(self, feeds: Feeds) -> NDArray[np.float32]:
        """Answers texts, see `Runner`."""
        (answer,) = run_unpadded(self._stages, [feeds])
        assert answer.layers is not None, "a cascade counts layers. This is a bug."
        self.left.update(answer.layers[:, 0].tolist())
        return answer.output


def run_all(runner: Runner, rows: Rows, names: Sequence[str], what: str) -> list[NDArray[np.float32]]:
    """Runs every input, texts of like length together, with a progress bar.

    Returns:
        One output for each input; for tokens [its tokens, labels].
    """
    order = sorted(range(len(rows.encodings)), key=lambda index: len(rows.encodings[index].ids))
    outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(order)
    with tqdm(total=len(order), desc=what, unit="text", leave=False, disable=None) as progress:
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            for index, output in zip(part, runner(rows.feeds(part, names)), strict=True):
                outputs[index] = output[: len(rows.encodings[index].ids)] if output.ndim == 2 else output
            progress.update(len(part))
    return outputs
