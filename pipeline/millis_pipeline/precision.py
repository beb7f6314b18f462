"""bfloat16 instead of fp32, on processors that compute in it: whether this machine can."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.variants import VariantRecipe
from millis_server.triton.backend.engine import DEFAULT_ENGINES


def has_bfloat16() -> bool:
    """Whether this machine's processor computes in bfloat16."""
    import openvino  # only for recipes that ask: it is an extra

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def possible_here(variants: Sequence[VariantRecipe]) -> tuple[tuple[VariantRecipe, ...], tuple[str, ...]]:
    """Takes out the variants in bfloat16 where the processor has none.

    Returns:
        The variants that are left, and the names of the others.

    Raises:
        CheckpointError: one is asked for, and the engine that computes in it is not installed.
    """
    asking = [variant for variant in variants if variant.precision is not None]
    if not asking:
        return tuple(variants), ()
    if find_spec(DEFAULT_ENGINES["bf16"]) is None:
        raise CheckpointError(
            f"variants: {asking[0].name}: precision bf16 needs OpenVINO, which is not installed: "
            "pip install 'millis[openvino]'"
        )
    if has_bfloat16():
        return tuple(variants), ()
    return tuple(v for v in variants if v.precision is None), tuple(v.name for v in asking)
