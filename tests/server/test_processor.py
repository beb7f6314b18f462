"""Processors by what Linux tells of them."""

import platform

import pytest

from millis_server.processor import saturates


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu avx2 fma", True),
        ("x86_64", "fpu avx2 avx512f avx512bw", True),
        ("x86_64", "fpu avx2 avx512f avx512_vnni", False),
        ("x86_64", "fpu avx2 avx_vnni", False),
        ("AMD64", "fpu avx2 amx_int8", False),
        ("aarch64", "", False),
    ],
)
def test_only_x86_without_vnni_saturates(tmp_path, monkeypatch, machine, flags, expected):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name : any\nflags\t\t: {flags}\n")
    assert saturates(tmp_path / "cpuinfo") is expected
