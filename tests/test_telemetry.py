"""The libraries under Millis report nothing of what they do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Published

ENGINE = (
    "from millis_server.triton.backend.engine import EngineOptions, load_engine; from pathlib import Path; import sys"
)
RUN = f"{ENGINE}; load_engine('onnxruntime', Path(sys.argv[1]), EngineOptions())"


@pytest.mark.parametrize(
    "program",
    [RUN, f"import millis_pipeline; {RUN}", f"import benchmarks.overhead; {RUN}"],
    ids=["server", "pipeline", "benchmarks"],
)
def test_onnx_runtime_leaves_no_identity_and_no_events_for_telemetry(
    published: Published, tmp_path: Path, program: str
) -> None:
    # It suppresses its telemetry by itself where CI is set.
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    subprocess.run(
        [sys.executable, "-c", program, published.repository / "intent-fp32" / "1" / "model.onnx"],
        env={**environment, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
    )
    assert [path.name for path in tmp_path.rglob("*onnxruntime*")] == []
