"""Reads the manifest of a version folder, and compares the files there with it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import ValidationError

from millis_server.manifest import Manifest

MANIFEST_FILE = "manifest.json"


class ManifestError(ValueError):
    """A version folder that the gateway cannot serve; the message names the file and the problem."""


def read_manifest(version_dir: Path) -> Manifest:
    """Reads and validates the manifest of a version folder.

    Args:
        version_dir: for example `model_repository/intent-int8/1`.

    Raises:
        ManifestError: the file is missing, is not JSON, or a field is wrong; the message names it.
    """
    path = version_dir / MANIFEST_FILE
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ManifestError(f"{path}: {field}: {first['msg']}") from error
    if manifest.triton_model != version_dir.parent.name:
        raise ManifestError(
            f"{path}: model and variant say {manifest.triton_model}, the folder is {version_dir.parent.name}"
        )
    return manifest


def verify_files(version_dir: Path, manifest: Manifest) -> None:
    """Compares the files of a version folder with the digests in its manifest.

    Reads every byte of the weights: call it off the event loop.

    Raises:
        ManifestError: a file is missing or differs; the message names it.
    """
    for name, expected in manifest.files.items():
        try:
            digest = sha256(version_dir / name)
        except OSError as error:
            raise ManifestError(f"{version_dir / name}: {error.strerror}") from error
        if digest != expected:
            raise ManifestError(f"{version_dir / name}: its SHA-256 is {digest[:12]}…, not {expected[:12]}…")


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
