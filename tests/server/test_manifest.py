import json

import pytest

from millis_server.manifest import Manifest, Provenance, SelfCheck
from millis_server.manifest_files import ManifestError, read_manifest, sha256, verify_files


def manifest(**changes: object) -> Manifest:
    values = {
        "model": "intent",
        "variant": "int8",
        "task": "text-classification",
        "labels": ("a", "b"),
        "max_tokens": 64,
        "inputs": ("input_ids", "attention_mask"),
        "files": {"model.onnx": "0", "tokenizer.json": "0"},
        "size_bytes": 1,
        "provenance": Provenance(checkpoint="x", created_at="2026-01-01"),
        "self_check": (SelfCheck(text="hi", expected=(0.0, 1.0)),),
    }
    return Manifest(**{**values, **changes})


def write(folder, content: str):
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    return folder


def test_a_manifest_is_read_back_as_it_was_written(tmp_path):
    folder = write(tmp_path / "intent-int8" / "1", manifest().model_dump_json())
    assert read_manifest(folder) == manifest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 4"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"labels": ["a", "a"]}, "manifest: Value error, labels: a name appears twice"),
        ({"inputs": ["attention_mask"]}, "manifest: Value error, inputs: input_ids is missing"),
        ({"variant": "fp32"}, "model and variant say intent-fp32, the folder is intent-int8"),
    ],
)
def test_a_wrong_field_is_named_with_the_file(tmp_path, change, message):
    content = {**json.loads(manifest().model_dump_json()), **change}
    folder = write(tmp_path / "intent-int8" / "1", json.dumps(content))
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    assert str(caught.value) == f"{folder}/manifest.json: {message}"


def test_a_changed_file_is_found_by_its_digest(tmp_path):
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text(name)
    digests = {name: sha256(tmp_path / name) for name in ("model.onnx", "tokenizer.json")}
    verify_files(tmp_path, manifest(files=digests))
    (tmp_path / "model.onnx").write_text("other")
    with pytest.raises(ManifestError, match=r"model\.onnx: its SHA-256 is"):
        verify_files(tmp_path, manifest(files=digests))
