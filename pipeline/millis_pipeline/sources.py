"""Finds the folder of a checkpoint by what the user named.

That is a local folder, a hub id, or `package:NAME` for a checkpoint that a Python package carries in its folder
`model`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from millis_pipeline.checkpoint import CheckpointError, one_line

PACKAGE_PREFIX = "package:"


def resolve(source: str) -> Path:
    """Finds the folder of a checkpoint; a hub id is downloaded.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    folder = local_folder(source)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download  # only here: local builds must not wait for a network
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, ignore_patterns=["*.bin.index*", "*.msgpack", "*.h5", "*.ot", "onnx/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = one_line(error)
        raise CheckpointError(f"checkpoint {source}: not a folder, and the hub does not give it: {reason}") from error


def local_folder(source: str) -> Path | None:
    """The folder of a checkpoint that is on this machine; None for a hub id.

    Raises:
        CheckpointError: there is no such folder or package, and it is no hub id.
    """
    if source.startswith(PACKAGE_PREFIX):
        return _package_folder(source)
    folder = Path(source)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "modules.json")):
            raise CheckpointError(f"checkpoint {folder}: neither config.json nor modules.json is in it")
        return folder
    if source.startswith((".", "/")) or source.count("/") != 1:
        raise CheckpointError(f"checkpoint {source}: no such folder, and no hub id (owner/name)")
    return None


def _package_folder(source: str) -> Path:
    name = source.removeprefix(PACKAGE_PREFIX)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise CheckpointError(f"checkpoint {source}: no Python package {name!r} is installed")
    folder = Path(spec.origin).parent / "model"
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {source}: the package has no folder {folder.name!r}")
    return folder
