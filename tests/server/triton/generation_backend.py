"""Imports modules of the generating backend as Triton's process does: with their folder on the path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import millis_server.triton

FOLDER = Path(millis_server.triton.__file__).parent / "generation_backend"


def backend(name: str) -> ModuleType:
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))
    return importlib.import_module(name)
