"""Exports a checkpoint to ONNX, dynamic in texts and tokens."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from millis_pipeline.architectures import Encoder
from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.exits import ExitModel
from millis_server.manifest import OUTPUT_NAMES, WEIGHTS_FILE
from millis_server.triton.backend.microbatch import HIDDEN, MASK

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


def example_inputs(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Inputs to trace the module with, in order."""
    return {name: _example(name) for name in checkpoint.inputs}


def _example(name: str) -> torch.Tensor:
    # Sizes differ from each other, from 0 and from 1, which the exporter would take for constants.
    example = torch.full((2, 7), 5, dtype=torch.int64)
    return {"input_ids": example, MASK: torch.ones_like(example), "token_type_ids": torch.zeros_like(example)}[name]


def _export(module: nn.Module, arguments: dict[str, torch.Tensor], outputs: list[str], path: Path, source: str) -> None:
    """Writes one graph.

    PyTorch's exporter of traced programs (`dynamo=True`) is used. Its shapes are symbolic, so a length that the
    example happens to have is never written into the graph, which the older exporter did with some families.
    """
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), _no_collection():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                tuple(arguments.values()),
                path,
                input_names=list(arguments),
                output_names=outputs,
                dynamic_shapes=tuple(axes for _ in arguments),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise ExportError(f"{source} cannot be exported to ONNX: {str(error).splitlines()[0]}") from error


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
