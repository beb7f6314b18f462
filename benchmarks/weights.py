"""How fast a decoder's step is with each way of storing weights, beside what memory bandwidth allows.

    python -m benchmarks.weights --shape 0.5b

All sides are the backend's engine in a process of its own, asked in turn with prompts of 64 random tokens. Quality is
not measured here, since random weights have none: `millis build` measures it for each variant.
"""

from __future__ import annotations

import argparse
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.decoders import SHAPES, random_model
from benchmarks.generation_sides import PROMPT_TOKENS, BareEngine, Timed, prompts, read_bandwidth
from millis_pipeline.decoders.compress import compress
from millis_pipeline.decoders.convert import GRAPH_FILE, convert
from millis_pipeline.decoders.recipe import DecoderVariant
from millis_pipeline.latency import machine

TOKENS = 48
KINDS = {
    "int8": DecoderVariant(name="int8", weights="int8"),
    "int8, asymmetric": DecoderVariant(name="int8-asymmetric", weights="int8", symmetric=False),
    "int4, groups of 128": DecoderVariant(name="int4", weights="int4"),
    "int4, groups of 128, asymmetric": DecoderVariant(name="int4-asymmetric", weights="int4", symmetric=False),
}
HEAD = (
    "| callers | weights | MB | first token p50 ms | next token p50 / p90 / p99 ms | of the first row | "
    "of memory's floor |\n|---|---|---|---|---|---|---|"
)


def build(folder: Path, shape: str) -> dict[str, Path]:
    """Folders of the graphs by kind of weights, built once."""
    folders = {kind: folder / shape / variant.name for kind, variant in KINDS.items()}
    missing = [kind for kind, path in folders.items() if not (path / GRAPH_FILE).is_file()]
    if missing:
        print(f"building {SHAPES[shape].what} with random weights", flush=True)
        exported = folder / shape / "exported"
        exported.mkdir(parents=True, exist_ok=True)
        convert(random_model(SHAPES[shape]), exported)
        for kind in missing:
            compress(exported, folders[kind], KINDS[kind])
    return folders


def row(callers: int, kind: str, size: int, timed: Timed, first_row: Timed, bandwidth: float) -> str:
    """A row of the table."""
    after = 1e3 * np.percentile(timed.between, (50, 90, 99))
    compared = 1e3 * float(np.median(first_row.between)) / after[0]
    floor = 100 * 1e3 * size / bandwidth / after[0]
    return (
        f"| {callers} | {kind} | {size / 1e6:.0f} | {1e3 * np.median(timed.first):.1f} | "
        f"{after[0]:.2f} / {after[1]:.2f} / {after[2]:.2f} | {compared:.2f} times as fast | {floor:.0f} % |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="0.5b")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8], help="numbers of callers at once")
    parser.add_argument("--rounds", type=int, default=6, help="rounds counted, after one that warms up")
    parser.add_argument("--folder", type=Path, default=Path(".millis/bench_weights"), help="what is built stays here")
    arguments = parser.parse_args()
    folders = build(arguments.folder, arguments.shape)
    engines = {kind: BareEngine(path) for kind, path in folders.items()}
    vocabulary = SHAPES[arguments.shape].config.vocab_size
    found: dict[tuple[int, str], Timed] = {}
    for number in range(arguments.rounds + 1):
        for callers in arguments.callers:
            for place, (kind, engine) in enumerate(engines.items()):
                # Prompts of its own for each: one that was seen before would come from the prefix cache.
                seed = (number * len(engines) + place) * 1000 + callers
                timed = engine.ask(prompts(callers, vocabulary, seed), TOKENS)
                if number:
                    found.setdefault((callers, kind), Timed()).merge(timed)
    for engine in engines.values():
        engine.close()
    bandwidth = read_bandwidth()
    print(f"Machine: {machine()}; Python {sys.version.split()[0]}; openvino-genai {version('openvino-genai')}\n")
    print(f"{SHAPES[arguments.shape].what}, prompts of {PROMPT_TOKENS} tokens, texts of {TOKENS}, ", end="")
    print(f"{arguments.rounds} rounds; memory reads {bandwidth / 1e9:.1f} GB/s\n")
    print(HEAD)
    for callers in arguments.callers:
        for kind, path in folders.items():
            size = (path / GRAPH_FILE).with_suffix(".bin").stat().st_size
            first_row = found[callers, next(iter(folders))]
            print(row(callers, kind, size, found[callers, kind], first_row, bandwidth))


if __name__ == "__main__":
    main()
