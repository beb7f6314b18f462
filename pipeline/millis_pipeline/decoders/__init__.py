"""`millis build` for text-generation: from causal language models, or from text, to versions that generate."""

import sys

# OpenVINO and NNCF report their use over the network through this module, unless it cannot be imported.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None is how Python marks it so
