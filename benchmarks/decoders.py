"""Language models of well-known shapes with random weights, published for `benchmarks.generate`.

Speed does not depend on what the weights are, and these are to be had without a hub.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, set_seed

from millis_pipeline.decoders.compress import compress
from millis_pipeline.decoders.convert import convert
from millis_pipeline.decoders.recipe import DecoderVariant
from millis_pipeline.publish import publish, staging, write_version
from millis_server.manifest import Generation, Manifest, Provenance
from millis_server.manifest_files import sha256

CONTEXT = 2048


@dataclass(frozen=True)
class Shape:
    """A model to build.

    Attributes:
        config: of transformers.
        weights: of the variants, `fp32`, `int8` or `int4`.
        what: in words.
    """

    config: PretrainedConfig
    weights: tuple[str, ...]
    what: str


SHAPES = {
    "0.5b": Shape(
        Qwen2Config(
            vocab_size=151936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=2,
        ),
        ("int8",),
        "Qwen2.5-0.5B's shape",
    ),
    "15m": Shape(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=288,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            eos_token_id=2,
        ),
        ("int8",),
        "stories15M's shape",
    ),
}


def checkpoint_of(folder: Path, name: str) -> Path:
    """Folder of the checkpoint of a shape that `build` has built."""
    return folder / "checkpoints" / name


def build(folder: Path, name: str) -> Path:
    """Builds a shape once and returns the model repository that holds it.

    Args:
        folder: of everything that this benchmark keeps.
        name: of the shape.
    """
    repository = folder / "repository"
    shape = SHAPES[name]
    model_name = f"random-{name}"
    if all((repository / f"{model_name}-{weights}").is_dir() for weights in shape.weights):
        return repository
    print(f"building {shape.what} with random weights", flush=True)
    set_seed(0)
    model = AutoModelForCausalLM.from_config(shape.config, attn_implementation="sdpa").eval()
    model.save_pretrained(checkpoint_of(folder, name))
    with staging(repository) as stage:
        exported = stage / "exported"
        exported.mkdir()
        convert(model, exported)
        staged = []
        for weights in shape.weights:
            target = stage / weights
            target.mkdir()
            if weights == "fp32":
                shutil.copytree(exported, target, dirs_exist_ok=True)
            else:
                compress(exported, target, DecoderVariant(weights=weights))
            _tokenizer(shape.config.vocab_size).save(str(target / "tokenizer.json"))
            manifest = _manifest(model_name, weights, shape, target)
            write_version(target, manifest)
            staged.append((target, manifest))
        publish(repository, staged)
    return repository


def _manifest(model_name: str, weights: str, shape: Shape, folder: Path) -> Manifest:
    return Manifest(
        model=model_name,
        variant=weights,
        task="text-generation",
        max_tokens=CONTEXT,
        default_variant=weights == shape.weights[0],
        files={path.name: sha256(path) for path in folder.iterdir()},
        size_bytes=(folder / "openvino_model.bin").stat().st_size,
        provenance=Provenance(checkpoint=f"{shape.what}, random weights", created_at="2026-01-01T00:00:00Z"),
        generation=Generation(
            kv_cache_precision="f32" if weights == "fp32" else "u8",
            weights=("openvino_model.xml", "openvino_model.bin"),
            vocabulary=shape.config.vocab_size,
            eos_ids=(2,),
            max_streams=8,
            cache_tokens=8 * CONTEXT,
        ),
    )


def _tokenizer(size: int) -> Tokenizer:
    """Every token is a word of its own: what is generated must become text as it would in earnest."""
    words = {f"Ġw{number}": number for number in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
