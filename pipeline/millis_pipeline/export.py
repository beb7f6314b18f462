"""Exports a checkpoint to ONNX, dynamic in texts and tokens."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint
from millis_server.manifest import OUTPUT_NAMES, WEIGHTS_FILE, TensorName
from millis_server.triton.backend.microbatch import HIDDEN, MASK

if TYPE_CHECKING:  # what trains exits trains with finetune.py, which asks here whether an export will do
    from millis_pipeline.exits import ExitModel

OPSET = 18


class ExportError(RuntimeError):
    """A checkpoint that cannot be exported; the message is one line."""


def export_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the checkpoint's graph.

    Args:
        checkpoint: what to export.
        path: file to write; weights are inside.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    _export(checkpoint.module, example_inputs(checkpoint), [OUTPUT_NAMES[checkpoint.task]], path, checkpoint.source)


def export_stages(model: ExitModel, checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Writes the graphs of a cascade into a folder, see `ExitModel.stages`.

    Raises:
        ExportError: PyTorch cannot export one.
    """
    output = OUTPUT_NAMES[checkpoint.task]
    width = Encoder(model).base.config.hidden_size
    stages = model.stages()
    paths = []
    for number, stage in enumerate(stages, 1):
        first, last = number == 1, number == len(stages)
        tokens = {"input_ids": _example("input_ids")} if first else {HIDDEN: torch.rand(2, 7, width)}
        outputs = [output] if last else [output, "confidence", "next_hidden_states"]
        path = folder / (WEIGHTS_FILE if first else f"stage-{number}.onnx")
        _export(stage, {**tokens, MASK: _example(MASK)}, outputs, path, checkpoint.source)
        paths.append(path)
    return paths


def check_exportable(module: nn.Module, names: Sequence[TensorName], source: str) -> None:
    """Tries what `export_onnx` will come to, before minutes are spent on training.

    Of an architecture that is known to export one layer is captured, which takes a second: the others are like it. Of
    any other, or when that fails, only an export of the whole tells.

    Args:
        module: with one output.
        names: of its arguments, in order.
        source: checkpoint, for the message.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    arguments: dict[str, torch.Tensor] = {name: _example(name) for name in names}
    if not _captured(module, arguments):
        _export(module, arguments, ["output"], None, source)


def _captured(module: nn.Module, arguments: dict[str, torch.Tensor]) -> bool:
    """Whether PyTorch can trace the first layer of a module of a known architecture, with what is around the layers."""
    try:
        first = copy.deepcopy(module, {id(weight): weight for weight in module.parameters()})
        Encoder(first).keep_layers([0])
        with _quiet():
            torch.export.export(first.eval(), tuple(arguments.values()), dynamic_shapes=_axes(arguments))
    except Exception:  # of many kinds, and whatever it was, the whole export has the last word
        return False
    return True


def example_inputs(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Inputs to trace the module with, in order."""
    return {name: _example(name) for name in checkpoint.inputs}


def _example(name: str) -> torch.Tensor:
    # Sizes differ from each other, from 0 and from 1, which the exporter would take for constants.
    example = torch.full((2, 7), 5, dtype=torch.int64)
    return {"input_ids": example, MASK: torch.ones_like(example), "token_type_ids": torch.zeros_like(example)}[name]


def _axes(arguments: dict[str, torch.Tensor]) -> tuple[dict[int, Any], ...]:
    """Texts and tokens of every argument are dynamic."""
    return tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in arguments)


def _export(
    module: nn.Module, arguments: dict[str, torch.Tensor], outputs: list[str], path: Path | None, source: str
) -> None:
    """Writes one graph; without a path it is only made.

    PyTorch's exporter of traced programs (`dynamo=True`) is used. Its shapes are symbolic, so a length that the
    example happens to have is never written into the graph, which the older exporter did with some families.
    """
    try:
        with _quiet():
            torch.onnx.export(
                module.eval(),
                tuple(arguments.values()),
                path,
                input_names=list(arguments),
                output_names=outputs,
                dynamic_shapes=_axes(arguments),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise ExportError(f"{source} cannot be exported to ONNX: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What failed: it stands in the cause, around which is how to report it to PyTorch. A line that ends in a colon
    announces the next one."""
    lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
    return " ".join(line.lstrip("- ") for line in lines[: 2 if lines[0].endswith(":") else 1])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns of much that is no fault, and logs and prints pages about what is one."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            torch.no_grad(),
            _no_collection(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Tracing makes millions of objects that live to its end; looking for garbage among them takes a fifth of it."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
