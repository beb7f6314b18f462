"""Publishes variants of a model into a Triton model repository: all of them, whole, or none.

Everything is written into a folder whose name begins with a dot, which gateway and Triton ignore, brought to the
disk, and moved into place by renames. A process that ends half-way leaves the repository as it was.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from millis_server.manifest import MANIFEST_FILE, Manifest

CONFIG_FILE = "config.pbtxt"
STAGING_PREFIX = ".staging-"
MAX_BATCH = 64
WORKERS = 2
"""Engine calls that one model version runs side by side; two is right for two cores."""


class PublishError(RuntimeError):
    """The repository cannot be written; the message is one line and names the folder."""


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder inside the repository to prepare versions in; it is removed at the end, however that comes.

    It is inside so that renames do not cross file systems.

    Raises:
        PublishError: the repository cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=repository))
    except OSError as error:
        raise PublishError(f"model repository {repository}: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_version(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a staged version; the files it lists must be there."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")


def publish(repository: Path, staged: Sequence[tuple[Path, Manifest]]) -> dict[str, str]:
    """Moves staged versions into the repository.

    Args:
        repository: of Triton.
        staged: for each variant the folder of its version, inside `staging`, with its manifest.

    Returns:
        For each variant folder the version it was given.

    Raises:
        PublishError: the repository cannot be written; what was moved is moved back.
    """
    for folder, _ in staged:
        _sync_tree(folder)
    moves = [_prepare(repository, folder, manifest) for folder, manifest in staged]
    done: list[Path] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append(target)
    except OSError as error:
        for target in done:
            shutil.rmtree(target, ignore_errors=True)
        raise PublishError(f"model repository {repository}: {error.strerror}") from error
    for target in {target.parent for target in done}:
        _sync_folder(target)
    return {
        manifest.triton_model: target.name if target.name.isdecimal() else "1"
        for (_, target), (_, manifest) in zip(moves, staged, strict=True)
    }


def _prepare(repository: Path, folder: Path, manifest: Manifest) -> tuple[Path, Path]:
    """Says which rename publishes a version: of a whole variant folder, or of the version alone."""
    variant = repository / manifest.triton_model
    if not variant.is_dir():
        whole = folder.parent / f"{manifest.triton_model}-whole"
        whole.mkdir()
        (whole / CONFIG_FILE).write_text(triton_config(manifest), "utf-8")
        folder.rename(whole / "1")
        return whole, variant
    versions = [int(path.name) for path in variant.iterdir() if path.name.isdecimal()]
    return folder, variant / str(max(versions, default=0) + 1)


def triton_config(manifest: Manifest) -> str:
    """Text of a variant's config.pbtxt, made through Triton's own message so that a wrong field fails here."""
    config = triton.ModelConfig(name=manifest.triton_model, backend="millis", max_batch_size=MAX_BATCH)
    # The version before the newest stays loaded, so that the gateway can go back to it at once.
    config.version_policy.latest.num_versions = 2
    for name in manifest.inputs:
        # The backend fills in what says nothing: a mask of ones, types of zeros.
        config.input.add(
            name=name,
            data_type=triton.TYPE_INT64,
            dims=[-1],
            allow_ragged_batch=True,
            optional=name != "input_ids",
        )
    config.output.add(name=manifest.output, data_type=triton.TYPE_FP32, dims=[-1, -1] if manifest.per_token else [-1])
    # Of each text the tokens that were computed beside its own; left out of an answer that has none.
    config.output.add(name="padding", data_type=triton.TYPE_INT32, dims=[1])
    # No delay: batches form while the model is busy, and a lone request never waits.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    config.parameters["intra_op_threads"].string_value = "1"
    config.parameters["workers"].string_value = str(WORKERS)
    return text_format.MessageToString(config)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
