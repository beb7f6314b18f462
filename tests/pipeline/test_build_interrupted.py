"""What a build that is interrupted late leaves: between two stages, and amid the renames that publish."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from millis_pipeline import build, candidates
from tests.conftest import Published

Interrupter = Callable[[pytest.MonkeyPatch], None]


def before_stage(name: str) -> Interrupter:
    """Ctrl-C when a stage begins."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        stage = getattr(build, name)

        def interrupted(*arguments: object, **options: object) -> object:
            signal.raise_signal(signal.SIGINT)
            return stage(*arguments, **options)

        monkeypatch.setattr(build, name, interrupted)

    return patch


def at_rename_to(name: str, *, done: bool) -> Interrupter:
    """Ctrl-C before or after something is renamed to this."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename

        def interrupted(self: Path, target: Path) -> Path:
            here = "/".join(target.parts[-2:]) == name
            if here and not done:
                signal.raise_signal(signal.SIGINT)
            renamed = rename(self, target)
            if here and done:
                signal.raise_signal(signal.SIGINT)
            return renamed

        monkeypatch.setattr(Path, "rename", interrupted)

    return patch


def at_renames_from(name: str) -> Interrupter:
    """Ctrl-C after the rename to this, and again before every one that follows: those that put back."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        rename = Path.rename
        begun = False

        def interrupted(self: Path, target: Path) -> Path:
            nonlocal begun
            if begun:
                signal.raise_signal(signal.SIGTERM)
            renamed = rename(self, target)
            if "/".join(target.parts[-2:]) == name:
                begun = True
                signal.raise_signal(signal.SIGINT)
            return renamed

        monkeypatch.setattr(Path, "rename", interrupted)

    return patch


def tree(folder: Path) -> dict[str, bytes | None]:
    """Files with what is in them, and folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def recipe(published: Published, folder: Path) -> Path:
    """Makes `intent` in fp32 alone, so that publishing retires the variant in int8."""
    path = folder / "recipe.yaml"
    checkpoint = published.checkpoints / "intent"
    path.write_text(f"name: intent\ntask: text-classification\ncheckpoint: {checkpoint}\nvariants: [{{name: fp32}}]\n")
    return path


@pytest.mark.parametrize(
    "interrupt",
    [
        pytest.param(before_stage("assess"), id="before the variants are measured"),
        pytest.param(before_stage("publish"), id="before publishing"),
        pytest.param(at_rename_to("intent-fp32/2", done=False), id="before the new version is in its place"),
        pytest.param(at_rename_to("intent-fp32/2", done=True), id="after it"),
        pytest.param(at_rename_to(".retired/intent-int8", done=True), id="after the last rename"),
        pytest.param(at_renames_from("intent-fp32/2"), id="again and again, also while it puts back"),
    ],
)
def test_a_build_that_is_interrupted_late_leaves_the_repository_as_it_was(
    published: Published,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    interrupt: Interrupter,
) -> None:
    repository = published.intent_alone(tmp_path / "repository")
    (repository / ".retired").mkdir()
    before = tree(repository)
    graph = repository / "intent-fp32" / "1" / "model.onnx"
    # Of the same checkpoint: exporting it again would take seconds.
    monkeypatch.setattr(candidates, "export_onnx", lambda _, path: shutil.copy(graph, path))
    interrupt(monkeypatch)
    reports = tmp_path / "reports"
    path = recipe(published, tmp_path)
    assert build.main([str(path), "--repository", str(repository), "--reports", str(reports)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "millis build: interrupted; the repository is as it was before the last model"
    )
    assert tree(repository) == before
    assert list(reports.iterdir()) == []
