"""The Millis pipeline: from a checkpoint or labelled data to published, measured models."""

import os
import sys

# What two libraries would report of their use over the network: ONNX Runtime from its import on, unless this is set;
# OpenVINO and NNCF through this module, unless it cannot be imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python marks it so
