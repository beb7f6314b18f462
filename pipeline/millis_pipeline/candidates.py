"""Makes the graphs of every variant that a recipe asks for."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from millis_pipeline.architectures import Encoder
from millis_pipeline.calibrate import calibrate, trace
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.examples import Example, pad
from millis_pipeline.exits import ExitModel
from millis_pipeline.export import export_onnx, export_stages
from millis_pipeline.latency import stage_ms
from millis_pipeline.quantize import quantize_int8
from millis_pipeline.run import CascadeRunner, Feeds, Runner, onnx_runner
from millis_pipeline.students import Students
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.variants import Exits, VariantRecipe
from millis_pipeline.verify import EvaluationSet
from millis_pipeline.vocabulary import trimmed
from millis_server.manifest import TOKENIZER_FILE, WEIGHTS_FILE, Exit
from millis_server.triton.backend.cascade import Stage
from millis_server.triton.backend.engine import EngineOptions, load_engine

CALIBRATION_TEXTS = 128


@dataclass(frozen=True)
class Candidate:
    """A variant as it was made, not yet measured.

    Attributes:
        recipe: what was asked for.
        folder: with weights and tokenizer.
        checkpoint: the teacher, with the module that the graph was exported from.
        steps: in words how it was made.
        exits: graphs of a variant with early exits, and who leaves after each; the shares are not measured yet.
        unfit: why it must not be published, whatever is measured; empty when nothing is known against it.
    """

    recipe: VariantRecipe
    folder: Path
    checkpoint: Checkpoint
    steps: tuple[str, ...]
    exits: tuple[Exit, ...] = ()
    unfit: str = ""

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.recipe.name

    @property
    def graphs(self) -> list[Path]:
        """Its graphs, in the order in which an input goes through them."""
        return [self.folder / exit.file for exit in self.exits] or [self.folder / WEIGHTS_FILE]

    @property
    def reference(self) -> bool:
        """Whether it is the teacher itself."""
        return self.recipe.plain

    def runner(self, *, leaving: bool = True) -> Runner:
        """Runs it; with `leaving` false every input goes through all graphs."""
        if not self.exits:
            return onnx_runner(self.graphs[0])
        stages = self.stages()
        if leaving:
            return CascadeRunner(stages)
        return CascadeRunner([stage._replace(threshold=stage.threshold and inf) for stage in stages])

    def stages(self) -> list[Stage]:
        """Its graphs with their thresholds, loaded."""
        return [
            Stage(load_engine("onnxruntime", path, EngineOptions(threads=0)), exit.layers, exit.threshold)
            for path, exit in zip(self.graphs, self.exits, strict=True)
        ]


def make_candidates(
    variants: Sequence[VariantRecipe],
    students: Students | None,
    teacher: Checkpoint,
    texts: Sequence[Example],
    held_out: EvaluationSet | None,
    stage: Path,
    *,
    reduce_range: bool,
    say: Callable[[str], None],
) -> list[Candidate]:
    """Makes the graphs of every variant in a folder of its own; variants that differ in quantization share a training.

    Args:
        variants: to make.
        students: makes smaller modules; None where no variant needs one.
        teacher: the fine-tuned checkpoint.
        texts: to calibrate quantization with.
        held_out: to calibrate exits with; None where no variant has any.
        stage: folder that gets the folders.
        reduce_range: whether int8 weights get 7 bits.
        say: told what is being done.

    Raises:
        CheckpointError: the teacher cannot be made smaller.
        ExportError: PyTorch cannot export a module.
    """
    feeds = _calibration(texts, teacher)
    exported: dict[int, list[Path]] = {}
    made = []
    for variant in variants:
        if variant.trained:
            say(f"training {variant.name}")
        checkpoint, steps = students.make(variant) if students is not None else (teacher, ())
        if variant.trim is not None:
            checkpoint, said = trimmed(checkpoint, texts, variant.trim.min_count)
            steps = (*steps, said)
        folder = stage / f"candidate-{variant.name}"
        folder.mkdir()
        tokenizer = write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_FILE)
        graphs = exported.get(id(checkpoint.module))
        if graphs is None:
            say(f"exporting {variant.name} to ONNX")
            scratch = stage / f"exported-{len(exported)}"
            scratch.mkdir()
            graphs = exported[id(checkpoint.module)] = _export(checkpoint, scratch)
        if variant.quantize is not None:
            say(f"quantizing {variant.name}")
        steps = (*steps, *_finish(variant, graphs, folder, feeds, reduce_range))
        candidate = Candidate(variant, folder, checkpoint, steps)
        if variant.exits is not None:
            assert held_out is not None, "exits are calibrated on data set aside. This is a bug."
            say(f"calibrating the exits of {variant.name} on {len(held_out.inputs)} texts set aside")
            own = held_out.read_by(checkpoint, tokenizer) if variant.trim is not None else held_out
            candidate = with_exits(candidate, [folder / path.name for path in graphs], variant.exits, own)
        made.append(candidate)
    return made


def _export(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    if isinstance(checkpoint.module, ExitModel):
        return export_stages(checkpoint.module, checkpoint, folder)
    export_onnx(checkpoint, folder / WEIGHTS_FILE)
    return [folder / WEIGHTS_FILE]


def _finish(
    variant: VariantRecipe, graphs: Sequence[Path], folder: Path, feeds: Sequence[Feeds], reduce_range: bool
) -> tuple[str, ...]:
    """Puts the graphs into the variant's folder, quantized if it says so; returns the step in words."""
    said: tuple[str, ...] = ()
    for graph in graphs:
        if variant.quantize is None:
            shutil.copyfile(graph, folder / graph.name)
            continue
        kept = quantize_int8(graph, folder / graph.name, reduce_range=reduce_range, spec=variant.quantize, texts=feeds)
        said = (_quantization(variant, kept, len(feeds), reduce_range),)
    return said


def with_exits(candidate: Candidate, graphs: Sequence[Path], spec: Exits, held_out: EvaluationSet) -> Candidate:
    """The candidate with calibrated exits; unfit where no thresholds hold what was agreed and are worth it."""
    checkpoint = candidate.checkpoint
    depth = len(Encoder(checkpoint.module).layers)
    layers = (*spec.after, depth)
    engines = [load_engine("onnxruntime", path, EngineOptions(threads=0)) for path in graphs]
    stages = [Stage(engine, gone) for engine, gone in zip(engines, layers, strict=True)]
    found = calibrate(trace(checkpoint, stages, held_out), [stage_ms(path) for path in graphs], spec.max_loss)
    thresholds = found.thresholds if found is not None else (1.0,) * len(spec.after)
    exits = tuple(
        Exit(file=path.name, layers=gone, threshold=threshold, share=0)
        for path, gone, threshold in zip(graphs, layers, (*thresholds, None), strict=True)
    )
    if found is None:
        unfit = f"no thresholds of its exits save time within exits.max_loss {spec.max_loss:g}"
        return replace(candidate, exits=exits, unfit=unfit)
    leave = ", ".join(
        f"{threshold:.3f} after layer {gone}" for threshold, gone in zip(thresholds, layers, strict=False)
    )
    said = (
        f"calibrated on {len(held_out.inputs)} texts set aside: a text leaves with a confidence of at least {leave}; "
        f"there that loses {max(found.loss, 0):.4f} and saves {100 * found.saved:.0f} % of the time"
    )
    return replace(candidate, exits=exits, steps=(*candidate.steps, said))


def _calibration(texts: Sequence[Example], teacher: Checkpoint) -> list[Feeds]:
    """Some of the texts, one in each feed."""
    some = random.Random(0).sample(list(texts), min(CALIBRATION_TEXTS, len(texts)))
    feeds: list[Feeds] = []
    for text in some:
        ids, mask = pad([text], teacher.tokenizer.pad_token_id or 0)
        values: Feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        feeds.append({name: values[name] for name in teacher.inputs})
    return feeds


def _quantization(variant: VariantRecipe, kept: Sequence[str], texts: int, reduced: bool) -> str:
    assert variant.quantize is not None
    bits = "7-bit weights (no VNNI)" if reduced else "8-bit weights"
    how = f"calibrated on {texts} texts" if variant.quantize.method == "static" else "dynamic"
    return f"int8, {how}, {bits}" + (f", in fp32: {', '.join(kept)}" if kept else "")
