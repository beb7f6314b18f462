"""What is made of a checkpoint's layout, beside the library that wrote it, and of a hub that does not give one."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

from millis_pipeline import build
from millis_pipeline.checkpoint import Checkpoint, CheckpointError, infer_task, load
from millis_pipeline.export import export_onnx
from millis_pipeline.run import Runner, graph_runner, run_all, tokenize, torch_runner
from millis_server.manifest import Manifest, Provenance, SelfCheck
from millis_server.tasks.ranking import Ranking
from tests import tiny

DOCUMENTS = ("fox", "where is my order", "the quick brown fox jumps over the lazy dog in Paris on Monday last week")
QUERY = "the order"
IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"


def outputs(
    checkpoint: Checkpoint, inputs: tuple[str, ...] | tuple[tuple[str, str], ...], runner: Runner | None = None
) -> list[NDArray[np.float32]]:
    """Of inputs of different lengths, padded beside each other."""
    rows = tokenize(checkpoint.tokenizer.backend_tokenizer, inputs, checkpoint.max_tokens, 0)
    return run_all(runner or torch_runner(checkpoint), rows, checkpoint.inputs, "")


def encoded(folder: Path) -> NDArray[np.float32]:
    vectors: NDArray[np.float32] = SentenceTransformer(str(folder), device="cpu").encode(list(DOCUMENTS))
    return vectors


def change(path: Path, **keys: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("normalized", [False, True])
def test_vectors_are_pooled_and_scaled_as_the_checkpoint_says(tmp_path: Path, pooling: str, normalized: bool) -> None:
    folder = tiny.sentence_model(tmp_path / "model", Pooling(32, pooling), *([Normalize()] if normalized else []))
    checkpoint = load("model", folder)
    assert (checkpoint.task, checkpoint.dimensions, checkpoint.normalized) == ("embedding", 32, normalized)
    vectors = np.stack(outputs(checkpoint, DOCUMENTS))
    np.testing.assert_allclose(vectors, encoded(folder), atol=1e-4)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) is normalized


def test_a_graph_pools_as_the_checkpoint_says(tmp_path: Path) -> None:
    folder = tiny.sentence_model(tmp_path / "model", Pooling(32, ("cls", "max", "mean")))
    checkpoint = load("model", folder)
    assert (checkpoint.dimensions, checkpoint.normalized) == (96, False)
    export_onnx(checkpoint, tmp_path / "model.onnx")
    vectors = np.stack(outputs(checkpoint, DOCUMENTS, graph_runner(tmp_path / "model.onnx", threads=1)))
    np.testing.assert_allclose(vectors, encoded(folder), atol=1e-4)


def test_vectors_are_cut_as_the_checkpoint_says_and_are_then_not_of_length_1(tmp_path: Path) -> None:
    folder = tiny.sentence_model(tmp_path / "model", Pooling(32, "mean"), Normalize(), truncate_dim=8)
    checkpoint = load("model", folder)
    assert (checkpoint.dimensions, checkpoint.normalized) == (8, False)
    np.testing.assert_allclose(np.stack(outputs(checkpoint, DOCUMENTS)), encoded(folder), atol=1e-4)


def test_a_prompt_that_would_be_left_out_is_refused(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "fox: "}, "default_prompt_name": "query"}
    folder = tiny.sentence_model(tmp_path / "model", Pooling(32, "mean"), **prompts)
    with pytest.raises(CheckpointError) as caught:
        load("model", folder)
    assert str(caught.value) == (
        "checkpoint model: its default prompt 'fox: ' goes before every text, which is not supported; set "
        "default_prompt_name to null in its config_sentence_transformers.json and let callers send the prompt"
    )
    change(folder / "config_sentence_transformers.json", default_prompt_name=None)
    np.testing.assert_allclose(np.stack(outputs(load("model", folder), DOCUMENTS)), encoded(folder), atol=1e-4)


def scores(checkpoint: Checkpoint) -> list[float]:
    """What the gateway makes of the logits, in the order of the documents."""
    manifest = Manifest(
        model="rerank",
        variant="fp32",
        task="cross-encoder",
        max_tokens=checkpoint.max_tokens,
        inputs=checkpoint.inputs,
        activation=checkpoint.activation,
        files={"model.onnx": "0", "tokenizer.json": "0"},
        size_bytes=1,
        provenance=Provenance(checkpoint="x", created_at="2026-01-01T00:00:00+00:00"),
        self_check=(SelfCheck(text=QUERY, pair=DOCUMENTS[0], expected=(0.0,)),),
    )
    logits = outputs(checkpoint, tuple((QUERY, document) for document in DOCUMENTS))
    ranked = Ranking(QUERY, DOCUMENTS).postprocess(manifest, logits)
    return [each.score for each in sorted(ranked, key=lambda each: each.index)]


@pytest.mark.parametrize(
    ("stated", "activation"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "identity"),
        ({"sbert_ce_default_activation_function": IDENTITY}, "identity"),
    ],
)
def test_scores_of_a_cross_encoder_are_those_of_its_activation(
    tmp_path: Path, stated: dict[str, object], activation: str
) -> None:
    folder = tiny.cross_encoder(tmp_path / "model")
    change(folder / "config.json", **stated)
    checkpoint = load("model", folder)
    assert (checkpoint.task, checkpoint.activation) == ("cross-encoder", activation)
    expected = CrossEncoder(str(folder), device="cpu").predict([(QUERY, document) for document in DOCUMENTS])
    assert scores(checkpoint) == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("function", "activation"), [(torch.nn.Sigmoid(), "sigmoid"), (torch.nn.Identity(), "identity")]
)
def test_a_cross_encoder_that_sentence_transformers_wrote_is_known_as_one(
    tmp_path: Path, function: torch.nn.Module, activation: str
) -> None:
    """It has a `modules.json` like a model that embeds, and its activation is not in `config.json`."""
    written = CrossEncoder(str(tiny.cross_encoder(tmp_path / "plain")), device="cpu", activation_fn=function)
    folder = tmp_path / "model"
    written.save_pretrained(str(folder))
    assert (folder / "modules.json").is_file()
    checkpoint = load("model", folder)
    assert (checkpoint.task, checkpoint.activation) == ("cross-encoder", activation)
    expected = written.predict([(QUERY, document) for document in DOCUMENTS])
    assert scores(checkpoint) == pytest.approx(expected.tolist(), abs=1e-4)
    with pytest.raises(CheckpointError) as caught:
        load("model", folder, "embedding")
    assert str(caught.value) == (
        "checkpoint model: it is a CrossEncoder (config_sentence_transformers.json), which gives no embeddings"
    )


def test_another_activation_than_sigmoid_and_identity_is_refused(tmp_path: Path) -> None:
    folder = tiny.cross_encoder(tmp_path / "model")
    change(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    with pytest.raises(CheckpointError) as caught:
        load("model", folder)
    assert str(caught.value) == (
        "checkpoint model: its activation 'torch.nn.modules.activation.Tanh' is neither Sigmoid nor Identity"
    )


def test_a_broken_file_of_sentence_transformers_is_named(tmp_path: Path) -> None:
    folder = tiny.cross_encoder(tmp_path / "model")
    (folder / "modules.json").write_text("[]")
    (folder / "config_sentence_transformers.json").write_text("{")
    with pytest.raises(CheckpointError) as caught:
        infer_task("model", folder)
    assert str(caught.value).startswith("checkpoint model: config_sentence_transformers.json: Expecting property name")


@pytest.mark.parametrize("task", ["text-classification", "embedding", "text-generation"])
def test_a_hub_that_cannot_be_reached_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    folders = ["--repository", str(tmp_path / "repository"), "--reports", str(tmp_path / "reports")]
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        assert build.main(["some-org/some-model", "--task", task, *folders]) == 1
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("millis build: checkpoint some-org/some-model: not a folder, and the hub does not give it: ")
    assert "Connection refused" in line
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_name_that_no_hub_has_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--repository", str(tmp_path / "repository"), "--reports", str(tmp_path / "reports")]
    assert build.main(["some-org/some--model", "--task", "embedding", *folders]) == 1
    assert capsys.readouterr().err == (
        "millis build: checkpoint some-org/some--model: not a folder, and the hub does not give it: "
        "Cannot have -- or .. in repo_id: 'some-org/some--model'.\n"
    )
