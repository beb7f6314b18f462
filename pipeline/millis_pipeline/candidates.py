"""Makes the graphs of every variant that a recipe asks for."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from millis_pipeline.agreement import agreement
from millis_pipeline.aot import compile_torch
from millis_pipeline.calibrate import Calibration, calibrate, trace
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.examples import Example, pad
from millis_pipeline.exits import ExitModel
from millis_pipeline.export import export_onnx, export_stages
from millis_pipeline.latency import Graph, stage_ms
from millis_pipeline.progress import step
from millis_pipeline.quantize import Floor, quantize_int8
from millis_pipeline.run import CascadeRunner, Feeds, Runner, graph_runner, load_cascade
from millis_pipeline.side_by_side import Alone
from millis_pipeline.students import Students
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.variants import Exits, Quantize, Trim, VariantRecipe
from millis_pipeline.verify import EvaluationSet
from millis_pipeline.vocabulary import trimmed
from millis_server.manifest import COMPILED_FILE, TOKENIZER_FILE, WEIGHTS_FILE, Exit, Precision
from millis_server.triton.backend.cascade import Stage

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
    def files(self) -> list[Path]:
        """Everything that is published of it, but for the manifest."""
        compiled = [self.folder / COMPILED_FILE] if self.recipe.compile is not None else []
        return [*self.graphs, *compiled, self.folder / TOKENIZER_FILE]

    @property
    def exact(self) -> bool:
        """Whether it computes in single precision throughout."""
        return self.recipe.quantize is None and self.recipe.precision is None

    @property
    def precision(self) -> Precision:
        """What it computes in where nothing is quantized."""
        return self.recipe.precision or "f32"

    @property
    def reference(self) -> bool:
        """Whether it is the teacher itself."""
        return self.recipe.plain

    def runner(self) -> Runner:
        """Runs it as it is served."""
        return CascadeRunner(self.stages()) if self.exits else graph_runner(self.graphs[0], precision=self.precision)

    def exact_runner(self) -> Runner:
        """Runs its graphs in single precision, and every input through all of them."""
        if not self.exits:
            return graph_runner(self.graphs[0])
        return CascadeRunner(load_cascade(self.graphs, [exit.layers for exit in self.exits]))

    def stages(self) -> list[Stage]:
        """Its graphs with their thresholds, loaded."""
        layers, thresholds = zip(*((exit.layers, exit.threshold) for exit in self.exits), strict=True)
        return load_cascade(self.graphs, layers, thresholds, self.precision)


class CandidateMaker:
    """Makes the graphs of variants, each in a folder of its own; those that differ in quantization share all before it.

    Args:
        teacher: the fine-tuned checkpoint.
        students: makes smaller modules, and has the texts to calibrate quantization with and whose tokens a trimmed
            vocabulary keeps; None where no variant needs either.
        held_out: to calibrate exits with; None where no variant has any.
        stage: folder that gets the folders.
        reduce_range: whether int8 weights get 7 bits.
        max_loss: share of the answers that quantization may change where `keep_fp32` is `auto`.
        say: told what is being done.
        alone: called before exits are calibrated, by what each graph takes.
    """

    def __init__(
        self,
        teacher: Checkpoint,
        students: Students | None,
        held_out: EvaluationSet | None,
        stage: Path,
        *,
        reduce_range: bool,
        max_loss: float,
        say: Callable[[str], None],
        alone: Alone,
    ) -> None:
        self._teacher = teacher
        self._students = students
        self._held_out = held_out
        self._stage = stage
        self._reduce_range = reduce_range
        self._floor = Floor(partial(agreement, teacher.task, teacher.multi_label), 1 - max_loss)
        self._say = say
        self._alone = alone
        self._trimmed: dict[tuple[nn.Module, Trim], tuple[Checkpoint, str]] = {}
        self._fewer: dict[tuple[ExitModel, tuple[int, ...]], ExitModel] = {}
        self._exported: dict[nn.Module, list[Path]] = {}

    def make(self, variant: VariantRecipe) -> Candidate:
        """Makes one variant.

        Raises:
            CheckpointError: the teacher cannot be made smaller.
            ExportError: PyTorch cannot export a module.
        """
        if variant.trained:
            self._say(f"training {variant.name}")
        checkpoint, steps = self._students.make(variant) if self._students is not None else (self._teacher, ())
        if variant.trim is not None:
            checkpoint, trim = self._trim(checkpoint, variant.trim)
            steps = (*steps, trim)
        folder = self._stage / f"candidate-{variant.name}"
        folder.mkdir()
        tokenizer = write_tokenizer(checkpoint.tokenizer, folder / TOKENIZER_FILE)
        candidate = Candidate(variant, folder, checkpoint, steps)
        if variant.exits is None:
            _, said = self._write(candidate)
            if variant.compile is not None:
                self._say(f"compiling {variant.name} for PyTorch")
                with step("compiling"):
                    compile_torch(checkpoint, folder / COMPILED_FILE)
                said = (*said, "compiled for the engine torch (AOTInductor)")
            return replace(candidate, steps=(*steps, *said))
        assert self._held_out is not None, "exits are calibrated on data set aside. This is a bug."
        held_out = self._held_out
        if variant.trim is not None:
            held_out = held_out.read_by(checkpoint, tokenizer)
        return self._with_exits(candidate, variant.exits, held_out)

    def _trim(self, checkpoint: Checkpoint, spec: Trim) -> tuple[Checkpoint, str]:
        """The checkpoint with a smaller vocabulary, and the step in words."""
        key = checkpoint.module, spec
        if key not in self._trimmed:
            texts = self._texts(checkpoint)
            with step("trimming"):
                self._trimmed[key] = trimmed(checkpoint, texts, spec.min_count)
        return self._trimmed[key]

    def _texts(self, checkpoint: Checkpoint) -> Sequence[Example]:
        """The recipe's texts as the checkpoint's tokenizer reads them."""
        assert self._students is not None, "only a recipe has texts. This is a bug."
        return self._students.texts(checkpoint)

    def _with_exits(self, candidate: Candidate, spec: Exits, held_out: EvaluationSet) -> Candidate:
        """The candidate with calibrated exits. An exit at which nobody should leave is taken out of the graphs.

        Those that are left are calibrated once more: other graphs may have been quantized in another way.
        """
        graphs, said = self._write(candidate)
        model = candidate.checkpoint.module
        found = self._calibrated(candidate, graphs, spec, held_out)
        steps = (*candidate.steps, *said)
        if found is None:
            exits = cascade_exits(graphs, model.ends, [1.0] * len(model.after))
            unfit = f"no thresholds of its exits save time within exits.max_loss {spec.max_loss:g}"
            return replace(candidate, exits=exits, unfit=unfit, steps=steps)
        used = [exit for exit, threshold in enumerate(found.thresholds) if threshold is not None]
        if len(used) < len(model.after):
            for path in graphs:
                path.unlink()
            fewer = replace(candidate.checkpoint, module=self._with_fewer_exits(model, tuple(used)))
            return self._with_exits(replace(candidate, checkpoint=fewer), spec, held_out)
        thresholds = [threshold for threshold in found.thresholds if threshold is not None]
        steps = (*steps, found.as_text(model.after, len(held_out.inputs)))
        return replace(candidate, exits=cascade_exits(graphs, model.ends, thresholds), steps=steps)

    def _with_fewer_exits(self, model: ExitModel, used: tuple[int, ...]) -> ExitModel:
        """The same module each time, so that variants which differ in quantization share its export."""
        key = model, used
        if key not in self._fewer:
            self._fewer[key] = model.with_exits(used)
        return self._fewer[key]

    def _calibrated(
        self, candidate: Candidate, graphs: Sequence[Path], spec: Exits, held_out: EvaluationSet
    ) -> Calibration | None:
        """The thresholds of the graphs as they are served: quantized, or in the precision that the recipe says."""
        self._alone()
        self._say(f"calibrating the exits of {candidate.name} on {len(held_out.inputs)} texts set aside")
        stages = load_cascade(graphs, candidate.checkpoint.module.ends, precision=candidate.precision)
        costs = [stage_ms(Graph(path, precision=candidate.precision)) for path in graphs]
        return calibrate(trace(candidate.checkpoint, stages, held_out), costs, spec.max_loss)

    def _write(self, candidate: Candidate) -> tuple[list[Path], tuple[str, ...]]:
        """Puts the graphs into the candidate's folder, quantized if it says so; returns them and how they compute, in
        words."""
        checkpoint, quantize = candidate.checkpoint, candidate.recipe.quantize
        graphs = self._exported.get(checkpoint.module)
        if graphs is None:
            self._say(f"exporting {candidate.name} to ONNX")
            with step("exporting"):
                graphs = self._exported[checkpoint.module] = self._export(checkpoint)
        targets = [candidate.folder / graph.name for graph in graphs]
        if quantize is None:
            for graph, target in zip(graphs, targets, strict=True):
                shutil.copyfile(graph, target)
            rounded = candidate.recipe.precision is not None
            return targets, ("computed in bfloat16 by the engine openvino",) if rounded else ()
        self._say(f"quantizing {candidate.name}")
        texts = _calibration(self._texts(checkpoint), checkpoint) if quantize.needs_texts else []
        kept = quantize_int8(
            graphs, targets, reduce_range=self._reduce_range, spec=quantize, texts=texts, floor=self._floor
        )
        return targets, (_quantization(quantize, kept, len(texts), self._reduce_range),)

    def _export(self, checkpoint: Checkpoint) -> list[Path]:
        folder = Path(tempfile.mkdtemp(prefix="exported-", dir=self._stage))
        if isinstance(checkpoint.module, ExitModel):
            return export_stages(checkpoint.module, checkpoint, folder)
        export_onnx(checkpoint, folder / WEIGHTS_FILE)
        return [folder / WEIGHTS_FILE]


def cascade_exits(graphs: Sequence[Path], layers: Sequence[int], thresholds: Sequence[float]) -> tuple[Exit, ...]:
    """The manifest's entries; the shares are not measured yet."""
    return tuple(
        Exit(file=path.name, layers=gone, threshold=threshold, share=0)
        for path, gone, threshold in zip(graphs, layers, (*thresholds, None), strict=True)
    )


def _calibration(texts: Sequence[Example], checkpoint: Checkpoint) -> list[Feeds]:
    """Some of the texts, whatever read them always the same ones, one in each feed."""
    some = random.Random(0).sample(list(texts), min(CALIBRATION_TEXTS, len(texts)))
    feeds: list[Feeds] = []
    for text in some:
        ids, mask = pad([text], checkpoint.tokenizer.pad_token_id or 0)
        values: Feeds = {"input_ids": ids.numpy(), "attention_mask": mask.numpy()}
        feeds.append({name: values[name] for name in checkpoint.inputs})
    return feeds


def _quantization(quantize: Quantize, kept: Sequence[str], texts: int, reduced: bool) -> str:
    bits = "7-bit weights (no VNNI)" if reduced else "8-bit weights"
    how = f"calibrated on {texts} texts" if quantize.method == "static" else "dynamic"
    return f"int8, {how}, {bits}" + (f", in fp32: {', '.join(kept)}" if kept else "")
