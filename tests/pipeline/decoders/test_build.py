"""`millis build` of models that generate text, from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from millis_pipeline import build, tune
from millis_pipeline.decoders import build as decoder_build
from millis_pipeline.decoders import candidates, measure
from millis_pipeline.decoders.engine import EXACT, Engine, EngineSetup
from millis_pipeline.decoders.reference import torch_greedy
from millis_pipeline.decoders.tokenizer import CHAT_TEMPLATE, train_tokenizer
from millis_server.manifest import Manifest
from millis_server.manifest_files import read_manifest, verify_files
from tests.pipeline.decoders.tiny_decoders import SENTENCES, checkpoint, decoder

SCRATCH = """\
name: chat
task: text-generation
architecture: {hidden_size: 64, layers: 3, heads: 4, kv_heads: 2, intermediate_size: 128, vocabulary: 330, context: 128}
train: talk.jsonl
test: talk.jsonl
dataset: small talk
epochs: 20
patience: 20
batch_tokens: 128
learning_rate: 0.01
noise: 0.05
max_quality_loss: 1.0
max_streams: 3
license: MIT
default: true
variants:
  - {name: fp32}
  - {weights: int8}
  - {weights: int4, group_size: 32}
  - {keep_layers: 2, distill: {epochs: 2, learning_rate: 0.002, hidden: 0.1}, weights: int8}
"""
TALK = (
    ("Where is my order?", "Please open My orders."),
    ("Can I return it?", "You can return an item within 30 days."),
)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few repetitions, and everything as fast as needed: speed on a shared machine must decide no test."""
    monkeypatch.setattr(measure, "ROUNDS", 1)
    monkeypatch.setattr("millis_pipeline.gate.FASTER", 1e9)


def talk(folder: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in TALK * 10
    ]
    path = folder / "talk.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def options(folder: Path) -> list[str]:
    return ["--repository", str(folder / "repository"), "--reports", str(folder / "reports")]


def manifests(folder: Path) -> dict[str, Manifest]:
    versions = sorted((folder / "repository").glob("*/1"))
    read = [read_manifest(version) for version in versions]
    for version, manifest in zip(versions, read, strict=True):
        verify_files(version, manifest)
    return {manifest.variant: manifest for manifest in read}


def test_a_recipe_from_nothing_is_trained_compressed_measured_and_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk(tmp_path)
    (tmp_path / "chat.yaml").write_text(SCRATCH)
    arguments = [str(tmp_path / "chat.yaml"), *options(tmp_path), "--keep", str(tmp_path / "kept")]
    assert build.main(arguments) == 0, capsys.readouterr().err
    read = manifests(tmp_path)
    assert list(read) == ["fp32", "int4", "int8", "layers-2-int8"]
    whole = read["fp32"]
    generation = whole.generation
    assert generation is not None
    assert whole.quality is not None
    assert (whole.quality.metric, whole.quality.value, whole.quality.dataset) == ("greedy_agreement", 1.0, "small talk")
    assert (whole.max_tokens, whole.pad_id, whole.default_for_task) == (128, 0, True)
    assert (generation.chat_template, generation.eos_ids, generation.guided) == (CHAT_TEMPLATE, (2,), True)
    assert (generation.max_streams, generation.cache_tokens, generation.default_max_tokens) == (3, 384, 128)
    assert sorted(generation.special_tokens.values()) == ["<|bos|>", "<|eos|>", "<|pad|>"]
    assert len(generation.checks) == 2
    assert whole.provenance.checkpoint == "random weights"
    assert whole.provenance.license == "MIT"
    assert [step.split(" ")[0] for step in read["layers-2-int8"].provenance.steps[1:]] == [
        "2",
        "distilled:",
        "weights",
        "perplexity",
    ]
    assert read["int4"].size_bytes < read["int8"].size_bytes < whole.size_bytes
    assert sum(manifest.default_variant for manifest in read.values()) == 1
    version = tmp_path / "repository" / "chat-fp32" / "1"
    for check in generation.checks:
        assert Engine(version, EXACT, 256).greedy([check.prompt], len(check.expected)) == [list(check.expected)]
    configs = {name: (tmp_path / "repository" / f"chat-{name}" / "config.pbtxt").read_text() for name in read}
    kept = {name: text_format.Parse(text, model_config_pb2.ModelConfig()) for name, text in configs.items()}
    precisions = [config.parameters["kv_cache_precision"].string_value for config in kept.values()]
    assert precisions == ["f32", "u8", "u8", "u8"]
    report = (tmp_path / "reports" / "chat.md").read_text()
    assert "`` <|bos|><|user|>Where is my order?<|assistant|> ``" in report
    assert "- PyTorch: `` Please open My orders. ``" in report
    assert "- fp32: the same" in report
    assert "Agreement is the mean share" in (tmp_path / "reports" / "chat.html").read_text()

    # What was kept can be built as it is, and fine-tuned.
    tuned = "name: tuned\ntask: text-generation\ncheckpoint: kept/chat\ntrain: talk.jsonl\nepochs: 1\n"
    (tmp_path / "tuned.yaml").write_text(tuned.replace("kept", "./kept") + "variants:\n  - {name: fp32}\n")
    assert build.main([str(tmp_path / "tuned.yaml"), *options(tmp_path)]) == 0, capsys.readouterr().err
    again = read_manifest(tmp_path / "repository" / "tuned-fp32" / "1")
    assert again.quality is None
    assert again.provenance.steps[0].startswith("fine-tuned on 19 samples")
    assert again.default_variant


def test_a_checkpoint_says_itself_that_it_generates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "Tiny_Llama")
    data = tmp_path / "text.txt"
    data.write_text(" ".join(SENTENCES * 5))
    assert build.main([str(folder), "--eval-data", str(data), *options(tmp_path)]) == 0
    read = manifests(tmp_path)
    assert "tiny-llama: published fp32 version 1: agreement 1.0000, perplexity " in capsys.readouterr().out
    assert read["fp32"].quality is not None
    assert read["fp32"].quality.dataset == "text.txt"
    # Random weights agree little when they are rounded: then fp32 answers.
    assert read["fp32"].default_variant
    assert tune.main(["tiny-llama", *options(tmp_path)[:2], "--state-dir", str(tmp_path / "state")]) == 1
    assert capsys.readouterr().err == (
        "millis tune: tiny-llama generates text; only models that answer in one step can be tuned\n"
    )


DRAFTS = """\
name: chat
task: text-generation
checkpoint: ./model
max_quality_loss: 1.0
variants:
  - {name: fp32}
  - {weights: fp32, draft: {keep_layers: 1, weights: fp32}}
  - {weights: int8, draft: {checkpoint: ./small}}
"""


def test_a_draft_is_published_inside_its_variant_and_the_text_stays_the_variants_own(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model")
    checkpoint(tmp_path / "small", decoder(num_hidden_layers=1))
    (tmp_path / "chat.yaml").write_text(DRAFTS)
    assert build.main([str(tmp_path / "chat.yaml"), *options(tmp_path)]) == 0
    read = manifests(tmp_path)
    assert list(read) == ["fp32", "fp32-draft", "int8-draft"]
    drafted, other = read["fp32-draft"].generation, read["int8-draft"].generation
    assert drafted is not None
    assert other is not None
    assert (drafted.draft, drafted.kv_cache_precision) == ("draft", "f32")
    assert drafted.weights[2:] == ("draft/openvino_model.xml", "draft/openvino_model.bin")
    version = tmp_path / "repository" / "chat-fp32-draft" / "1"
    assert {name for name in read["fp32-draft"].files if name.startswith("draft/")} == {
        path.relative_to(version).as_posix() for path in (version / "draft").iterdir()
    }
    assert read["fp32-draft"].provenance.steps[:1] == ("draft: 1 of 2 layers kept: 1",)
    assert read["int8-draft"].provenance.steps[1] == f"draft: {tmp_path}/small"
    engine = Engine(version, EngineSetup(kv_precision="f32", draft="draft"), 256)
    for check in read["fp32"].generation.checks if read["fp32"].generation else ():
        assert engine.greedy([check.prompt], len(check.expected)) == [list(check.expected)]
    config = text_format.Parse((version.parent / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.parameters["draft"].string_value == "draft"


def test_a_draft_with_another_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "model")
    other = decoder(num_hidden_layers=1)
    other.save_pretrained(tmp_path / "small")
    train_tokenizer(["quite other words than those"] * 9, 320, 128).save_pretrained(tmp_path / "small")
    (tmp_path / "chat.yaml").write_text(DRAFTS)
    assert build.main([str(tmp_path / "chat.yaml"), *options(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"millis build: variants: int8-draft: draft: checkpoint {tmp_path}/small has another tokenizer than the model\n"
    )


@pytest.mark.slow
def test_pytorch_reads_past_a_window_of_attention(tmp_path: Path) -> None:
    model = decoder("gemma3")
    folder = checkpoint(tmp_path / "gemma", model)
    assert build.main([str(folder), "--engine", "transformers", *options(tmp_path)]) == 0
    manifest = manifests(tmp_path)["fp32"]
    assert manifest.generation is not None
    assert (manifest.generation.engine, manifest.generation.weights) == ("transformers", ("model.safetensors",))
    assert manifest.max_tokens == 128
    assert manifest.latency is not None
    assert manifest.latency.engine.startswith("transformers ")
    engine = Engine(tmp_path / "repository" / "gemma-fp32" / "1", EngineSetup("transformers"), 256)
    try:
        for check in manifest.generation.checks:
            assert engine.greedy([check.prompt], len(check.expected)) == [list(check.expected)]
        prompt = [3 + 7 * place % 300 for place in range(110)]
        assert engine.greedy([prompt], 16) == [torch_greedy(model, prompt, 16, ()).tokens]
    finally:
        engine.close()


def test_what_cannot_be_measured_here_is_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint(tmp_path / "model")
    variants = "variants: [{name: fp32}, {weights: bf16, engine: transformers, device: cuda}]\n"
    (tmp_path / "chat.yaml").write_text(f"name: chat\ntask: text-generation\ncheckpoint: ./model\n{variants}")
    assert build.main([str(tmp_path / "chat.yaml"), *options(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "millis build: variants: bf16: device: PyTorch finds no CUDA device here, and what cannot be measured is not "
        "published\n"
    )


def test_a_window_of_attention_is_the_context_and_the_report_says_so(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "gemma", decoder("gemma3"))
    assert build.main([str(folder), "--task", "text-generation", *options(tmp_path)]) == 0
    assert manifests(tmp_path)["fp32"].max_tokens == 96
    report = (tmp_path / "reports" / "gemma.md").read_text()
    assert "some of its layers see only the last 96." in report


def test_without_the_engines_tokenizer_a_model_is_published_unguided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(candidates, "write_engine_tokenizer", lambda *_: "no such normalizer")
    assert build.main([str(checkpoint(tmp_path / "plain")), *options(tmp_path)]) == 0
    generation = manifests(tmp_path)["fp32"].generation
    assert generation is not None
    assert not generation.guided
    assert "guided output is not possible: its tokenizer cannot be converted: no such norm" in capsys.readouterr().out
    assert "Guided output is not possible" in (tmp_path / "reports" / "plain.md").read_text()


def test_a_graph_that_answers_otherwise_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    convert = candidates.convert
    monkeypatch.setattr(candidates, "convert", lambda _, folder: convert(decoder(initializer_range=0.31), folder))
    assert build.main([str(checkpoint(tmp_path / "plain")), *options(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("millis build: fp32: the engine answers prompt 1 of ")
    assert list((tmp_path / "repository").iterdir()) == []


def test_an_interruption_leaves_the_repository_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    talk(tmp_path)
    (tmp_path / "chat.yaml").write_text(SCRATCH)
    monkeypatch.setattr("millis_pipeline.decoders.train.language_loss", interrupt)
    assert build.main([str(tmp_path / "chat.yaml"), *options(tmp_path)]) == 130
    assert list((tmp_path / "repository").iterdir()) == []
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"variants": "variants: [{name: fp32}, {keep_layers: 2}]\n"},
            "keep_layers: the model has 2 layers; keep fewer",
        ),
        ({"teacher": ["--teacher", "x"]}, "generates text; its key checkpoint says what it begins from"),
        ({"test": "test: none.jsonl\n"}, "none.jsonl: No such file or directory"),
    ],
)
def test_what_cannot_come_to_anything_is_one_line(
    tmp_path: Path, changed: dict[str, object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint(tmp_path / "model")
    text = "name: chat\ntask: text-generation\ncheckpoint: ./model\n"
    text += "".join(value for value in changed.values() if isinstance(value, str))
    (tmp_path / "chat.yaml").write_text(text)
    further = [value for values in changed.values() if isinstance(values, list) for value in values]
    assert build.main([str(tmp_path / "chat.yaml"), *options(tmp_path), *further]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_missing_extra_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, decoder_build.__name__)
    monkeypatch.delitem(sys.modules, "millis_pipeline.decoders.candidates")
    monkeypatch.delitem(sys.modules, "millis_pipeline.decoders.compress")
    monkeypatch.setitem(sys.modules, "nncf", None)
    assert build.main([str(checkpoint(tmp_path / "plain")), *options(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "millis build: text-generation needs nncf, which is not installed: pip install 'millis[generation-build]'\n"
    )


def test_other_data_than_dialogues_and_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(tmp_path / "plain")
    assert build.main([str(folder), "--eval-data", "x.csv", *options(tmp_path)]) == 1
    assert (
        capsys.readouterr().err
        == f"millis build: {folder}: --eval-data: x.csv must end in .jsonl (dialogues) or .txt\n"
    )
