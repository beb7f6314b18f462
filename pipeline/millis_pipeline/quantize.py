"""Quantizes an exported graph to int8, with ONNX Runtime's dynamic quantizer.

Weights are quantized per output channel, activations at run time. Processors with AVX2 or AVX-512 but without
VNNI add two products in 16 bits, which saturates with 8-bit weights; there weights get 7 bits
(`reduce_range`, as ONNX Runtime's documentation of quantization advises).
"""

from __future__ import annotations

import logging
import platform
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic

VNNI_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8"}


def needs_reduced_range(cpu_info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether 8-bit weights would saturate on this processor: x86-64 without VNNI."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    for line in cpu_info.read_text().splitlines():
        if line.startswith("flags"):
            return not VNNI_FLAGS & set(line.split())
    return True


def quantize_int8(source: Path, target: Path, *, reduce_range: bool) -> None:
    """Writes the int8 version of a graph.

    Args:
        source: fp32 graph.
        target: file to write.
        reduce_range: whether weights get 7 bits.
    """
    logging.disable(logging.WARNING)  # the quantizer advises a pre-processing that changes nothing here
    try:
        quantize_dynamic(
            source,
            target,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
        )
    finally:
        logging.disable(logging.NOTSET)
