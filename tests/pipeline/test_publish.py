"""What publishing moves in and out of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from millis_pipeline.publish import PublishError, publish, staging, write_version
from millis_server.manifest import Manifest, Provenance, SelfCheck
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
