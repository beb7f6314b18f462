"""Exports a checkpoint to ONNX, dynamic in texts and tokens."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch

from millis_pipeline.checkpoint import Checkpoint
from millis_server.manifest import OUTPUT_NAMES

OPSET = 18


class ExportError(RuntimeError):
    """A checkpoint that cannot be exported; the message is one line."""


def export_onnx(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the checkpoint's graph.

    PyTorch's exporter of traced programs (`dynamo=True`) is used. Its shapes are symbolic, so a length that the
    example happens to have is never written into the graph, which the older exporter did with some families.

    Args:
        checkpoint: what to export.
        path: file to write; weights are inside.

    Raises:
        ExportError: PyTorch cannot export it.
    """
    # Sizes differ from each other, from 0 and from 1, which the exporter would take for constants.
    example = torch.full((2, 7), 5, dtype=torch.int64)
    mask = torch.ones_like(example)
    arguments = {"input_ids": example, "attention_mask": mask, "token_type_ids": torch.zeros_like(example)}
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                checkpoint.module,
                tuple(arguments[name] for name in checkpoint.inputs),
                path,
                input_names=list(checkpoint.inputs),
                output_names=[OUTPUT_NAMES[checkpoint.task]],
                dynamic_shapes=tuple(axes for _ in checkpoint.inputs),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises errors of many kinds
        raise ExportError(f"{checkpoint.source} cannot be exported to ONNX: {str(error).splitlines()[0]}") from error
