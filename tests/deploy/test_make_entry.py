"""Entries for the full Triton container are read back as gateway, Triton and engine read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from google.protobuf import text_format
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tritonclient.grpc import model_config_pb2 as triton

from deploy.triton import make_entry
from millis_pipeline.generation_config import generation_config
from millis_server.chat import ChatTemplates
from millis_server.manifest import Generation, Manifest
from millis_server.manifest_files import read_manifest, sha256, verify_files
from millis_server.tasks.generation import TextGeneration
from millis_server.tokenizer import Tokenizer as ServedTokenizer

WORDS = ["<s>", "</s>", "<unk>", "user:", "Hi", "assistant:"]
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}assistant:"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What a hub checkpoint has beside its weights; its tokenizer begins every text with `<s>`."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    vocabulary = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.add_special_tokens(WORDS[:2])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    return folder


@pytest.fixture
def model_code(tmp_path: Path) -> Path:
    folder = tmp_path / "llmapi"
    folder.mkdir()
    for name in ("model.py", "helpers.py"):
        (folder / name).write_text(f"# {name}\n")
    return folder


def write(checkpoint: Path, protocol: str, *options: str) -> int:
    return make_entry.main(
        [
            *("--protocol", protocol, "--checkpoint", "org/model", "--tokenizer", str(checkpoint / "tokenizer.json")),
            *("--name", "chat", "--max-tokens", "4096", "--repository", str(checkpoint.parent / "repository")),
            *options,
        ]
    )


def read(folder: Path) -> tuple[Manifest, Generation, triton.ModelConfig]:
    """The parts of an entry, checked as the gateway checks them."""
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    assert manifest.generation is not None
    config = text_format.Parse((folder.parent / "config.pbtxt").read_text(), triton.ModelConfig())
    return manifest, manifest.generation, config


def test_vllm(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write(checkpoint, "vllm", "--arguments", '{"tensor_parallel_size": 2}') == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == checkpoint.parent / "repository" / "chat-vllm" / "1"
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.json", "tokenizer.json"]
    assert json.loads((folder / "model.json").read_text()) == {
        "model": "org/model",
        "max_model_len": 4096,
        "max_num_seqs": 64,
        "gpu_memory_utilization": 0.45,
        "tensor_parallel_size": 2,
    }
    manifest, generation, config = read(folder)
    assert generation == Generation(
        protocol="vllm",
        weights=("model.json",),
        vocabulary=6,
        chat_template=TEMPLATE,
        special_tokens={"bos_token": "", "eos_token": "</s>"},
        eos_ids=(1, 2),
        max_streams=64,
        cache_tokens=64 * 4096,
    )
    assert (manifest.max_tokens, manifest.provenance.checkpoint) == (4095, "org/model")
    assert config == generation_config(manifest, generation)
    assert (config.name, config.backend, config.max_batch_size) == ("chat-vllm", "vllm", 0)
    assert config.model_transaction_policy.decoupled
    assert [group.kind for group in config.instance_group] == [triton.ModelInstanceGroup.KIND_MODEL]


def test_tensorrt_llm(checkpoint: Path, model_code: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--model-code", str(model_code), "--variant", "fp8", "--cache-tokens", "50000", "--max-streams", "16")
    assert write(checkpoint, "tensorrt-llm", *options) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert yaml.safe_load((folder / "model.yaml").read_text()) == {
        "model": "org/model",
        "backend": "pytorch",
        "max_seq_len": 4096,
        "max_batch_size": 16,
        "kv_cache_config": {"max_tokens": 50000, "free_gpu_memory_fraction": 0.45},
        "triton_config": {"max_batch_size": 0, "decoupled": True},
    }
    manifest, generation, config = read(folder)
    assert manifest.files == {
        name: sha256(folder / name) for name in ("helpers.py", "model.py", "model.yaml", "tokenizer.json")
    }
    assert (generation.protocol, generation.weights) == ("tensorrt-llm", ("model.yaml",))
    assert config == generation_config(manifest, generation)
    assert (config.name, config.backend, config.max_batch_size) == ("chat-fp8", "python", 0)
    assert config.model_transaction_policy.decoupled


def test_a_conversation_begins_with_one_token_of_the_engines(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write(checkpoint, "vllm") == 0
    folder = Path(capsys.readouterr().out.strip())
    manifest = read_manifest(folder)
    tokenizer = ServedTokenizer(folder / "tokenizer.json", manifest.max_tokens)
    task = TextGeneration(chat=[{"role": "user", "content": "Hi"}])
    prompt = task.prepare(manifest, tokenizer, ChatTemplates())
    assert prompt.text == "user: Hi assistant:"
    assert tokenizer.encoding(prompt.text, True).ids == [0, 3, 4, 5]


def test_a_second_entry_is_the_next_version(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [write(checkpoint, "vllm") for _ in range(2)] == [0, 0]
    folders = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [folder.name for folder in folders] == ["1", "2"]
    assert [read(folder)[0].triton_model for folder in folders] == ["chat-vllm", "chat-vllm"]
    assert [path.name for path in folders[0].parent.parent.iterdir()] == ["chat-vllm"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-code", "x"], "--model-code: vllm has none"),
        (["--arguments", "[1]"], "--arguments: must be a JSON object, not list"),
        (["--name", "Chat"], "model: String should match pattern '^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$'"),
        (["--tokenizer", "nowhere/tokenizer.json"], "nowhere/tokenizer.json: No such file or directory"),
    ],
)
def test_what_will_not_do_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert write(checkpoint, "vllm", *options) == 1
    assert capsys.readouterr().err == f"make_entry: {message}\n"
    assert not list(checkpoint.parent.glob("repository/*"))


def test_a_checkpoint_must_say_what_ends_a_text(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "generation_config.json").unlink()
    assert write(checkpoint, "vllm") == 1
    assert "neither generation_config.json nor config.json has an eos_token_id" in capsys.readouterr().err
