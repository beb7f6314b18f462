"""Tiny language models of real architectures with random weights, published for our generating backend."""

from __future__ import annotations

import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import openvino
import torch
from google.protobuf import text_format
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    set_seed,
)
from tritonclient.grpc import model_config_pb2 as triton

from millis_pipeline.decoders.convert import convert
from millis_pipeline.publish import publish, staging, write_version
from millis_server.manifest import EngineName, Generation, GreedyCheck, Manifest, Provenance
from millis_server.manifest_files import sha256
from millis_server.repository import CONFIG_FILE
from tests.tiny import SENTENCES

VOCABULARY = 384
CONTEXT = 512
EOS = 2
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "intermediate_size": 128}
COMMON = {"vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": EOS}
_EXPORTS: dict[int, tuple[tempfile.TemporaryDirectory[str], PreTrainedModel]] = {}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' and not loop.first %}{{ raise_exception('system comes first') }}{% endif %}"
    "{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
)
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, **COMMON, num_key_value_heads=2),
    "qwen2": Qwen2Config(**SHAPE, **COMMON, num_key_value_heads=2),
    "mistral": MistralConfig(**SHAPE, **COMMON, num_key_value_heads=2, sliding_window=None),
    "gemma": GemmaConfig(**SHAPE, **COMMON, num_key_value_heads=1, head_dim=16, pad_token_id=0),
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, bos_token_id=1, eos_token_id=EOS
    ),
    "phi3": Phi3Config(
        **SHAPE, **COMMON, num_key_value_heads=2, original_max_position_embeddings=CONTEXT, pad_token_id=0
    ),
}


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, so that a character can be several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=CONTEXT
    )


def write_engine_tokenizer(folder: Path) -> None:
    """Writes the tokenizer in the form that OpenVINO GenAI reads."""
    names = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
    for name, graph in zip(names, convert_tokenizer(bytes_tokenizer(), with_detokenizer=True), strict=True):
        openvino.save_model(graph, folder / name)


@cache
def language_model(family: str) -> PreTrainedModel:
    """A model with weights large enough that the most likely token is never in doubt."""
    set_seed(7)
    model = AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    return model


def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    """What transformers generates."""
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return [int(token) for token in made[0, len(prompt) :]]


def prompts(count: int, seed: int = 0, longest: int = 60) -> list[list[int]]:
    """Prompts of random tokens and lengths."""
    random = np.random.default_rng(seed)
    return [random.integers(3, VOCABULARY, size=int(random.integers(3, longest))).tolist() for _ in range(count)]


def publish_language_model(
    repository: Path,
    name: str,
    model: PreTrainedModel,
    *,
    chat_template: str = CHAT_TEMPLATE,
    max_streams: int = 8,
    cache_tokens: int = 4096,
    check: bool = True,
    parameters: dict[str, str] | None = None,
    engine: EngineName = "openvino_genai",
    draft: PreTrainedModel | None = None,
) -> str:
    """Publishes a model in fp32 and returns the version it was given."""
    with staging(repository) as stage:
        folder = stage / "fp32"
        if engine == "transformers":
            model.save_pretrained(folder)
            bytes_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
            weights: tuple[str, ...] = ("model.safetensors",)
        else:
            shutil.copytree(_exported(model), folder)
            weights = ("openvino_model.xml", "openvino_model.bin")
        if draft is not None:
            shutil.copytree(_exported(draft), folder / "draft")
        prompt = prompts(1, seed=5)[0]
        checks = (GreedyCheck(prompt=tuple(prompt), expected=tuple(greedy(model, prompt, 8))),) if check else ()
        manifest = Manifest(
            model=name,
            variant="fp32",
            task="text-generation",
            max_tokens=CONTEXT,
            default_variant=True,
            files={str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()},
            size_bytes=(folder / weights[-1]).stat().st_size,
            provenance=Provenance(checkpoint=f"random {name}", created_at="2026-01-01T00:00:00Z"),
            generation=Generation(
                engine=engine,
                kv_cache_precision="f32",
                draft="draft" if draft is not None else "",
                weights=weights,
                vocabulary=VOCABULARY,
                chat_template=chat_template,
                special_tokens={"bos_token": "<s>"},
                eos_ids=(EOS,),
                default_max_tokens=32,
                max_streams=max_streams,
                cache_tokens=cache_tokens,
                guided=engine == "openvino_genai",
                checks=checks,
            ),
        )
        write_version(folder, manifest)
        versions, _ = publish(repository, [(folder, manifest)])
    if parameters:
        _configure(repository / manifest.triton_model / CONFIG_FILE, parameters)
    return versions[manifest.triton_model]


def _exported(model: PreTrainedModel) -> Path:
    """The files of a model, converted once in a session."""
    if id(model) not in _EXPORTS:
        scratch = tempfile.TemporaryDirectory()
        # The model is kept too, so that its id stays its own.
        _EXPORTS[id(model)] = scratch, model
        folder = Path(scratch.name)
        convert(model, folder)
        bytes_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
        write_engine_tokenizer(folder)
    return Path(_EXPORTS[id(model)][0].name)


def _configure(path: Path, parameters: dict[str, str]) -> None:
    config = text_format.Parse(path.read_text(), triton.ModelConfig())
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    path.write_text(text_format.MessageToString(config))
