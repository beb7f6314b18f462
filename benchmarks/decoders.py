"""Language models of well-known shapes with random weights, published for `benchmarks.generate`.

Speed does not depend on what the weights are, and these are to be had without a hub.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config, set_seed

from millis_pipeline.decoders.compress import compress
from millis_pipeline.decoders.convert import convert
from millis_pipeline.decoders.recipe import DecoderVariant
from millis_pipeline.publish import publish, staging, write_version
from millis_server.manifest import EngineName, Generation, Manifest, Provenance
from millis_server.manifest_files import sha256

CONTEXT = 2048


@dataclass(frozen=True)
class Shape:
    """A model to build.

    Attributes:
        config: of transformers.
        weights: of the variants for OpenVINO GenAI, `fp32`, `int8` or `int4`.
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
    "7b": Shape(
        Qwen2Config(
            vocab_size=152064,
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=False,
            eos_token_id=2,
        ),
        ("int8",),
        "Qwen2.5-7B's shape",
    ),
}


@dataclass(frozen=True)
class Setup:
    """What runs a shape.

    Attributes:
        engine: of the backend.
        device: `cpu` or `cuda`.
        places: texts side by side.
    """

    engine: EngineName = "openvino_genai"
    device: Literal["cpu", "cuda"] = "cpu"
    places: int = 8

    def model(self, shape: str) -> str:
        """Name that a shape is published under."""
        graph = f"random-{shape}"
        return graph if self.engine == "openvino_genai" else f"{graph}-{self.device}-{self.places}"

    def weights(self, shape: str) -> tuple[str, ...]:
        """Of its variants, the one measured by default first."""
        if self.engine == "openvino_genai":
            return SHAPES[shape].weights
        return ("bf16",) if self.device == "cuda" else ("fp32",)


def checkpoint_of(folder: Path, name: str) -> Path:
    """Folder of the checkpoint of a shape that `build` has built."""
    return folder / "checkpoints" / name


def random_model(shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """A model of a shape, with the same random weights each time."""
    set_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(shape.config, attn_implementation="sdpa", dtype=dtype)
    evaluating: PreTrainedModel = model.eval()
    return evaluating


def build(folder: Path, name: str, setup: Setup) -> Path:
    """Builds a shape once and returns the model repository that holds it.

    Args:
        folder: of everything that this benchmark keeps.
        name: of the shape.
        setup: what will run it.
    """
    repository = folder / "repository"
    shape, weights = SHAPES[name], setup.weights(name)
    if all((repository / f"{setup.model(name)}-{each}").is_dir() for each in weights):
        return repository
    print(f"building {shape.what} with random weights", flush=True)
    model = random_model(shape, torch.bfloat16 if weights == ("bf16",) else torch.float32, setup.device)
    model.save_pretrained(checkpoint_of(folder, name))
    with staging(repository) as stage:
        if setup.engine == "transformers":
            # Linked: of a large model it would else be written twice.
            staged = {
                weights[0]: shutil.copytree(checkpoint_of(folder, name), stage / weights[0], copy_function=os.link)
            }
        else:
            staged = _graphs(model, stage, shape)
        written = []
        for each, target in staged.items():
            _tokenizer(shape.config.vocab_size).save(str(target / "tokenizer.json"))
            manifest = _manifest(setup, name, each, target)
            write_version(target, manifest)
            written.append((target, manifest))
        publish(repository, written)
    return repository


def _graphs(model: PreTrainedModel, stage: Path, shape: Shape) -> dict[str, Path]:
    """Folders with the graphs of OpenVINO GenAI, by their weights."""
    exported = stage / "exported"
    exported.mkdir()
    convert(model, exported)
    folders = {weights: stage / weights for weights in shape.weights}
    for weights, target in folders.items():
        if weights == "fp32":
            shutil.copytree(exported, target)
        else:
            target.mkdir()
            compress(exported, target, DecoderVariant(weights=weights))
    return folders


def _manifest(setup: Setup, name: str, weights: str, folder: Path) -> Manifest:
    shape = SHAPES[name]
    files = sorted(path.name for path in folder.iterdir())
    parts = tuple(file for file in files if file.startswith(("openvino_model.", "model")))
    return Manifest(
        model=setup.model(name),
        variant=weights,
        task="text-generation",
        max_tokens=CONTEXT,
        default_variant=weights == setup.weights(name)[0],
        files={file: sha256(folder / file) for file in files},
        size_bytes=sum((folder / file).stat().st_size for file in parts),
        provenance=Provenance(checkpoint=f"{shape.what}, random weights", created_at="2026-01-01T00:00:00Z"),
        generation=Generation(
            engine=setup.engine,
            device=setup.device,
            kv_cache_precision={"fp32": "f32", "bf16": "bf16"}.get(weights, "u8"),
            weights=parts,
            vocabulary=shape.config.vocab_size,
            eos_ids=(2,),
            max_streams=setup.places,
            cache_tokens=setup.places * CONTEXT,
        ),
    )


def _tokenizer(size: int) -> Tokenizer:
    """Every token is a word of its own: what is generated must become text as it would in earnest."""
    words = {f"Ġw{number}": number for number in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=next(iter(words))))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
