"""Compiles a model ahead of time for the engine `torch`: AOTInductor, PyTorch's compiler for deployment."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch._inductor import aoti_compile_and_package

from millis_pipeline.checkpoint import Checkpoint
from millis_pipeline.export import ExportError, example_inputs
from millis_server.manifest import OUTPUT_NAMES
from millis_server.triton.backend.engine_torch import INPUTS, OUTPUTS


def check_compiler() -> None:
    """Checks that there is a compiler, before minutes are spent.

    Raises:
        ExportError: there is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ExportError(
            f"compile: torch: it needs a C++ compiler, and there is no {compiler!r}; CXX names another one"
        )


def compile_torch(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the checkpoint's module as machine code for this kind of processor, dynamic in texts and tokens.

    Raises:
        ExportError: PyTorch cannot compile it.
    """
    arguments = example_inputs(checkpoint)
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    described = {INPUTS: ",".join(checkpoint.inputs), OUTPUTS: OUTPUT_NAMES[checkpoint.task]}
    logging.getLogger("torch").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                checkpoint.module.eval(), tuple(arguments.values()), dynamic_shapes=tuple(axes for _ in arguments)
            )
            aoti_compile_and_package(
                program, package_path=str(path), inductor_configs={"aot_inductor.metadata": described}
            )
    except Exception as error:  # the compiler raises errors of many kinds
        raise ExportError(f"{checkpoint.source} cannot be compiled: {str(error).splitlines()[0]}") from error
