"""Publishes variants of a model into a Triton model repository: all of them, whole, or none.

Everything is written into a folder whose name begins with a dot, which gateway and Triton ignore, brought to the
disk, and moved into place by renames. A process that ends half-way leaves the repository as it was; one that is killed
between two renames leaves every variant whole, as it was or as it will be. Its folder is removed by the next.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from millis_pipeline.generation_config import generation_config
from millis_pipeline.renames import Rename, rename_all, sync
from millis_server.manifest import Manifest
from millis_server.manifest_files import MANIFEST_FILE, ManifestError, read_manifest
from millis_server.repository import CONFIG_FILE
from millis_server.triton.model_config import ConfigUnreadable, read_config

STAGING_PREFIX = ".staging-"
OWNED = ".owned"
"""File in a staging folder that its process keeps locked. The system lets go of the lock whatever ends the process,
and, unlike a process id, it means the same to every container that the repository is shared with."""

RETIRED = ".retired"
"""Folder, inside the repository, of variants that a newer build of their model does not have."""

MAX_BATCH = 64
WORKERS = 2
"""Engine calls that one model version runs side by side; two is right for two cores."""


class PublishError(RuntimeError):
    """The repository, or another folder, cannot be written; the message is one line and names it."""


def check_folder(folder: Path, option: str) -> None:
    """Makes a folder that something will be written into, and tries that, before minutes are spent.

    Raises:
        PublishError: it cannot be made or written; the message names the option.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PublishError(f"{option} {folder}: {error.strerror}") from error


@contextmanager
def staging(repository: Path) -> Iterator[Path]:
    """A folder inside the repository to prepare versions in; it is removed at the end, however that comes.

    It is inside so that renames do not cross file systems. Those that killed processes left are removed as well.

    Raises:
        PublishError: the repository cannot be written.
    """
    try:
        repository.mkdir(parents=True, exist_ok=True)
        _sweep(repository)
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=repository))
    except OSError as error:
        raise PublishError(f"model repository {repository}: {error.strerror}") from error
    try:
        with _owned(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Marks a staging folder as that of a living process."""
    aside = folder / f"{OWNED}-new"
    with aside.open("wb") as file:
        # Locked before it has its name, so that nobody finds it unlocked. Without locks it is never swept.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            aside.rename(folder / OWNED)
        yield


def _sweep(repository: Path) -> None:
    """Removes the staging folders whose process is gone."""
    for mark in repository.glob(f"{STAGING_PREFIX}*/{OWNED}"):
        with suppress(OSError), mark.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(mark.parent, ignore_errors=True)


def write_version(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest of a staged version; the files it lists must be there."""
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n", "utf-8")


def publish(repository: Path, staged: Sequence[tuple[Path, Manifest]]) -> tuple[dict[str, str], list[str]]:
    """Moves staged versions into the repository, and variants of the same model that are not among them out of it.

    A variant that a build no longer makes, or that the gate refuses now, answers with what an older build learned,
    perhaps with other labels than its siblings: it must not go on answering beside them. Its folder is moved whole to
    `.retired/`, where gateway and Triton do not look; moved back, it is served again.

    Args:
        repository: of Triton.
        staged: for each variant the folder of its version, inside `staging`, with its manifest.

    Returns:
        For each variant folder the version it was given, and the folders that were moved out.

    Raises:
        PublishError: the repository cannot be written; what was moved is moved back, as it is when this is interrupted.
    """
    moves = [_prepare(repository, folder, manifest) for folder, manifest in staged]
    old = _retirements(repository, {manifest.model for _, manifest in staged}, {m.triton_model for _, m in staged})
    configs = [move for folder, manifest in staged for move in _renewed_config(repository, folder, manifest)]
    for move in (*configs, *moves):
        _sync_tree(move.source)
    # What was retired before under the same names goes into staging, which is removed at the end.
    aside = staged[0][0].parent
    older = [Rename(move.target, aside / f"{move.target.name}-retired") for move in old if move.target.exists()]
    try:
        rename_all([*configs, *moves, *older, *old])
    except OSError as error:
        raise PublishError(f"model repository {repository}: {error.strerror}") from error
    versions = {
        manifest.triton_model: move.target.name if move.target.name.isdecimal() else "1"
        for move, (_, manifest) in zip(moves, staged, strict=True)
    }
    return versions, [move.source.name for move in old]


def _prepare(repository: Path, folder: Path, manifest: Manifest) -> Rename:
    """Says which rename publishes a version: of a whole variant folder, or of the version alone."""
    variant = repository / manifest.triton_model
    if not variant.is_dir():
        whole = folder.parent / f"{manifest.triton_model}-whole"
        whole.mkdir()
        (whole / CONFIG_FILE).write_text(triton_config(manifest), "utf-8")
        folder.rename(whole / "1")
        return Rename(whole, variant)
    versions = [int(path.name) for path in variant.iterdir() if path.name.isdecimal()]
    return Rename(folder, variant / str(max(versions, default=0) + 1))


def _renewed_config(repository: Path, folder: Path, manifest: Manifest) -> list[Rename]:
    """The rename that replaces the config of a variant whose new version has other tensors, for example the output
    `layers` of early exits. All else in it stays: it may have been tuned."""
    path = repository / manifest.triton_model / CONFIG_FILE
    if not path.is_file():
        return []
    try:
        config = read_config(path.parent)
    except ConfigUnreadable as error:
        raise PublishError(str(error)) from error
    wanted = text_format.Parse(triton_config(manifest), triton.ModelConfig())
    if (list(config.input), list(config.output)) == (list(wanted.input), list(wanted.output)):
        return []
    for ours, theirs in ((config.input, wanted.input), (config.output, wanted.output)):
        del ours[:]
        ours.extend(theirs)
    new, before = (folder.parent / f"{manifest.triton_model}-{name}" for name in ("config", "config-before"))
    shutil.copy2(path, before)
    new.write_text(text_format.MessageToString(config), "utf-8")
    return [Rename(new, path, before)]


def _retirements(repository: Path, models: set[str], kept: set[str]) -> list[Rename]:
    """The renames that take variants of these models out of the repository, all but those kept."""
    moves = []
    for folder in sorted(repository.iterdir()):
        if folder.name.startswith(".") or folder.name in kept or _model_of(folder) not in models:
            continue
        target = repository / RETIRED / folder.name
        target.parent.mkdir(exist_ok=True)
        moves.append(Rename(folder, target))
    return moves


def _model_of(folder: Path) -> str:
    """Logical model of a variant folder by its newest readable manifest; empty when there is none."""
    versions = [path for path in folder.glob("*") if path.name.isdecimal()]
    for version in sorted(versions, key=lambda path: -int(path.name)):
        try:
            return read_manifest(version).model
        except ManifestError:
            continue
    return ""


def triton_config(manifest: Manifest) -> str:
    """Text of a variant's config.pbtxt, made through Triton's own message so that a wrong field fails here."""
    if manifest.generation is not None:
        return text_format.MessageToString(generation_config(manifest, manifest.generation))
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
    if manifest.exits:
        config.output.add(name="layers", data_type=triton.TYPE_INT32, dims=[1])
    # Of each text the tokens that were computed beside its own; left out of an answer that has none.
    config.output.add(name="padding", data_type=triton.TYPE_INT32, dims=[1])
    # No delay: batches form while the model is busy, and a lone request never waits.
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    config.parameters["intra_op_threads"].string_value = "1"
    config.parameters["workers"].string_value = str(WORKERS)
    return text_format.MessageToString(config)


def _sync_tree(path: Path) -> None:
    """Brings a file, or a folder with all that is in it, to the disk."""
    for each in (path, *path.rglob("*")):
        sync(each)
