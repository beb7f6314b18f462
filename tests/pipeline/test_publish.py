"""What publishing moves in and out of the repository."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from millis_pipeline.publish import PublishError, check_folder, publish, staging, triton_config, write_version
from millis_server.manifest import Exit, Manifest, Provenance, SelfCheck
from millis_server.manifest_files import read_manifest


def manifest(variant: str, model: str = "intent") -> Manifest:
    return Manifest(
        model=model,
        variant=variant,
        task="text-classification",
        labels=("a", "b"),
        max_tokens=64,
        inputs=("input_ids",),
        files={"model.onnx": "0", "tokenizer.json": "0"},
        size_bytes=1,
        provenance=Provenance(checkpoint="x", created_at="2026-01-01T00:00:00+00:00"),
        self_check=(SelfCheck(text="a", expected=(0.0,)),),
    )


def exiting(variant: str) -> Manifest:
    """A version with other tensors than that of `manifest`."""
    stages = (
        Exit(file="model.onnx", layers=1, threshold=0.5, share=0.5),
        Exit(file="stage-2.onnx", layers=2, share=0.5),
    )
    files = {"model.onnx": "0", "stage-2.onnx": "0", "tokenizer.json": "0"}
    return manifest(variant).model_copy(update={"exits": stages, "files": files})


def published(repository: Path, *manifests: Manifest) -> tuple[dict[str, str], list[str]]:
    with staging(repository) as stage:
        staged = []
        for number, written in enumerate(manifests):
            folder = stage / str(number)
            folder.mkdir()
            write_version(folder, written)
            staged.append((folder, written))
        return publish(repository, staged)


def visible(repository: Path) -> list[str]:
    return sorted(str(path.parent.relative_to(repository)) for path in repository.glob("[!.]*/*/manifest.json"))


def test_a_variant_that_a_new_build_does_not_have_is_moved_out_and_can_be_moved_back(tmp_path: Path) -> None:
    published(tmp_path, manifest("fp32"), manifest("student"), manifest("fp32", "intent-student"))
    versions, retired = published(tmp_path, manifest("fp32"), manifest("int8"))
    assert versions == {"intent-fp32": "2", "intent-int8": "1"}
    # `intent-student` is also how a variant of another model could be named: the manifest says whose it is.
    assert retired == ["intent-student"]
    assert visible(tmp_path) == ["intent-fp32/1", "intent-fp32/2", "intent-int8/1", "intent-student-fp32/1"]
    assert read_manifest(tmp_path / ".retired/intent-student/1").variant == "student"
    published(tmp_path, manifest("fp32"), manifest("student"))
    assert visible(tmp_path)[-2:] == ["intent-student-fp32/1", "intent-student/1"]
    published(tmp_path, manifest("fp32"))
    assert sorted(path.name for path in (tmp_path / ".retired").iterdir()) == ["intent-int8", "intent-student"]


def test_a_tuned_config_stays_and_follows_the_tensors_of_a_new_version(tmp_path: Path) -> None:
    published(tmp_path, manifest("fast"))
    path = tmp_path / "intent-fast" / "config.pbtxt"
    tuned = path.read_text().replace(
        'key: "workers"\n  value {\n    string_value: "2"', 'key: "workers"\n  value {\n    string_value: "7"'
    )
    assert 'string_value: "7"' in tuned
    path.write_text(tuned)
    published(tmp_path, manifest("fast"))
    assert path.read_text() == tuned
    published(tmp_path, exiting("fast"))
    assert visible(tmp_path) == ["intent-fast/1", "intent-fast/2", "intent-fast/3"]
    assert "layers" not in tuned
    assert 'name: "layers"' in path.read_text()
    assert 'string_value: "7"' in path.read_text()


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.pipeline.test_publish import exiting, published

variant, rename = Path(sys.argv[1]) / "intent-fast", Path.rename

def killed(self, target):
    rename(self, target)
    if variant in (self.parent, target.parent):
        os.kill(os.getpid(), signal.SIGKILL)

Path.rename = killed
published(variant.parent, exiting("fast"))
"""


def test_a_build_that_is_killed_after_its_first_rename_leaves_the_variant_with_a_config(tmp_path: Path) -> None:
    published(tmp_path, manifest("fast"))
    assert subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False).returncode == -signal.SIGKILL
    assert visible(tmp_path) == ["intent-fast/1"]
    assert (tmp_path / "intent-fast" / "config.pbtxt").read_text() == triton_config(exiting("fast"))
    published(tmp_path, exiting("fast"))
    assert visible(tmp_path) == ["intent-fast/1", "intent-fast/2"]


def test_a_move_that_fails_after_a_config_was_replaced_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(tmp_path, manifest("fast"))
    path = tmp_path / "intent-fast" / "config.pbtxt"
    tuned = path.read_text() + "# tuned by hand\n"
    path.write_text(tuned)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        assert path.is_file()
        if target.name == "2":
            assert path.read_text() != tuned
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(PublishError) as caught:
            published(tmp_path, exiting("fast"))
    assert str(caught.value) == f"model repository {tmp_path}: No space left on device"
    assert (visible(tmp_path), path.read_text()) == (["intent-fast/1"], tuned)


def test_a_move_that_fails_leaves_everything_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, manifest("fp32"), manifest("student"))
    before = visible(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".retired" in target.parts:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PublishError, match="No space left on device"):
        published(tmp_path, manifest("fp32"), manifest("int8"))
    assert visible(tmp_path) == before


def test_a_failed_move_loses_nothing_that_was_retired_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(tmp_path, manifest("fp32"), manifest("student"))
    published(tmp_path, manifest("fp32"))
    published(tmp_path, manifest("fp32"), manifest("student"))
    (tmp_path / ".retired/intent-student/first").touch()
    before = visible(tmp_path)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target.parent.name == ".retired" and self.parent == tmp_path:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", failing)
        with pytest.raises(PublishError, match="No space left on device"):
            published(tmp_path, manifest("fp32"))
    assert visible(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / ".retired/intent-student").iterdir()) == [
        "1",
        "config.pbtxt",
        "first",
    ]
    published(tmp_path, manifest("fp32"))
    assert sorted(path.name for path in (tmp_path / ".retired/intent-student").iterdir()) == ["1", "config.pbtxt"]


@pytest.mark.parametrize("moved", [False, True])
def test_an_interrupted_publishing_leaves_everything_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    published(tmp_path, manifest("fp32"), manifest("student"))
    before = visible(tmp_path)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if target.name == "intent-int8":
            if moved:
                rename(self, target)
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        published(tmp_path, manifest("fp32"), manifest("int8"))
    assert visible(tmp_path) == before
    assert list(tmp_path.glob(".*/*")) == []


def test_staging_folders_of_killed_builds_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".staging-killed", ".staging-unmarked"):
        (tmp_path / name / "intent-fp32").mkdir(parents=True)
    (tmp_path / ".staging-killed/.owned").touch()
    with staging(tmp_path) as living:
        assert living.is_dir()
        with staging(tmp_path) as other:
            names = sorted(path.name for path in tmp_path.iterdir())
            assert names == sorted([".staging-unmarked", living.name, other.name])
    assert [path.name for path in tmp_path.iterdir()] == [".staging-unmarked"]


def test_the_staging_folder_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, signal, sys; from millis_pipeline.publish import staging\n"
        "with staging(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, tmp_path], check=False).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert [path.name for path in left.iterdir()] == [".owned"]
    with staging(tmp_path) as stage:
        assert [path.name for path in tmp_path.iterdir()] == [stage.name]
        with (stage / ".owned").open("wb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_folder_that_cannot_be_written_is_named_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "new" / "folder", "--keep")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with pytest.raises(PublishError) as caught:
        check_folder(tmp_path / "file" / "folder", "--keep")
    assert str(caught.value) == f"--keep {tmp_path / 'file' / 'folder'}: Not a directory"
