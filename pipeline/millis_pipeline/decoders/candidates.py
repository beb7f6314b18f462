"""Makes the files of every variant that a recipe asks for."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from transformers import PreTrainedModel

from millis_pipeline.checkpoint import CheckpointError
from millis_pipeline.decoders.checkpoint import Decoder, load_decoder
from millis_pipeline.decoders.compress import compress
from millis_pipeline.decoders.convert import GRAPH_FILE, WEIGHTS_FILE, convert
from millis_pipeline.decoders.engine import EngineSetup
from millis_pipeline.decoders.recipe import DecoderRecipe, DecoderVariant, Draft
from millis_pipeline.decoders.samples import Sample, make_samples
from millis_pipeline.decoders.shrink import distill, kept_layers, with_layers
from millis_pipeline.decoders.tokenizer import ENGINE_FILES, write_engine_tokenizer
from millis_pipeline.decoders.train import split_documents
from millis_pipeline.progress import step
from millis_pipeline.sources import resolve
from millis_pipeline.tokenizer import write_tokenizer
from millis_server.manifest import TOKENIZER_FILE

GRAPH_FILES = (GRAPH_FILE, WEIGHTS_FILE)
DRAFT = "draft"
"""Folder of the model that guesses, inside that of a version."""


@dataclass(frozen=True)
class DecoderCandidate:
    """A variant as it was made, not yet measured.

    Attributes:
        variant: what was asked for.
        folder: with all that is published of it, but for the manifest.
        weights: files of the model and its draft, in the folder.
        model: what it computes, as a module.
        steps: in words how it was made.
        guided: whether the engine's tokenizer is there.
    """

    variant: DecoderVariant
    folder: Path
    weights: tuple[str, ...]
    model: PreTrainedModel
    steps: tuple[str, ...]
    guided: bool

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.variant.name

    @property
    def files(self) -> dict[str, Path]:
        """Everything that is published of it, but for the manifest, by its name in the folder."""
        found = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    @property
    def setup(self) -> EngineSetup:
        """How the engine is set up for it: what is exact in fp32 keeps its memory exact too."""
        variant = self.variant
        precision: Literal["f32", "u8"] = "f32" if variant.weights == "fp32" else "u8"
        return EngineSetup(variant.engine, variant.device, precision, DRAFT if variant.draft is not None else "")


class DecoderMaker:
    """Makes variants, each in a folder of its own; those with the same layers share a conversion.

    Args:
        decoder: the whole model.
        recipe: that asks for them.
        stage: folder that gets the folders.
        say: told what is being done.

    Attributes:
        unguided: why the engine's tokenizer is not there; empty when it is.
    """

    def __init__(self, decoder: Decoder, recipe: DecoderRecipe, stage: Path, say: Callable[[str], None]) -> None:
        self._decoder = decoder
        self._recipe = recipe
        self._stage = stage
        self._say = say
        self._tokenizers = Path(tempfile.mkdtemp(prefix="tokenizers-", dir=stage))
        write_tokenizer(decoder.tokenizer, self._tokenizers / TOKENIZER_FILE)
        self.unguided = ""
        if recipe.becomes_graphs:
            with step("converting the tokenizer"):
                self.unguided = write_engine_tokenizer(decoder.tokenizer, self._tokenizers)
        self._converted: dict[str, tuple[PreTrainedModel, Path, tuple[str, ...]]] = {}

    def make(self, variant: DecoderVariant) -> DecoderCandidate:
        """Makes one variant.

        Raises:
            CheckpointError: layers cannot be left out, or a draft does not fit.
            ConvertError: the model cannot be converted or compressed.
        """
        folder = self._stage / f"candidate-{variant.name}"
        folder.mkdir()
        shutil.copyfile(self._tokenizers / TOKENIZER_FILE, folder / TOKENIZER_FILE)
        if variant.engine == "transformers":
            return self._checkpoint(variant, folder)
        model, steps = self._graph(variant, folder)
        weights: tuple[str, ...] = GRAPH_FILES
        if variant.draft is not None:
            steps = (*steps, *self._draft(variant, variant.draft, folder / DRAFT))
            weights = (*weights, *(f"{DRAFT}/{name}" for name in GRAPH_FILES))
        return DecoderCandidate(variant, folder, weights, model, steps, guided=not self.unguided)

    def _checkpoint(self, variant: DecoderVariant, folder: Path) -> DecoderCandidate:
        """A variant for the engine that reads checkpoints as they are."""
        model, steps = self._shrink(variant)
        if variant.weights == "bf16":
            model = copy.deepcopy(model).to(torch.bfloat16)
            steps = (*steps, "weights in bf16")
        model.save_pretrained(folder)
        weights = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
        return DecoderCandidate(variant, folder, weights, model, steps, guided=False)

    def _graph(self, variant: DecoderVariant, folder: Path) -> tuple[PreTrainedModel, tuple[str, ...]]:
        """Writes a variant's graph and the engine's tokenizer; returns its module and how it was made."""
        model, graph, steps = self._convert(variant)
        if variant.weights == "fp32":
            for name in GRAPH_FILES:
                shutil.copyfile(graph / name, folder / name)
        else:
            self._say(f"compressing {variant.name}")
            with step("compressing"):
                steps = (*steps, compress(graph, folder, variant))
        for name in () if self.unguided else ENGINE_FILES:
            shutil.copyfile(self._tokenizers / name, folder / name)
        return model, steps

    def _draft(self, variant: DecoderVariant, draft: Draft, folder: Path) -> tuple[str, ...]:
        """Writes the small model that guesses for a variant; returns how it was made."""
        what = f"variants: {variant.name}: draft"
        if self.unguided:
            raise CheckpointError(f"{what}: the engine needs the tokenizer for it, which cannot be converted")
        folder.mkdir()
        if draft.checkpoint is None:
            _, steps = self._graph(draft.variant, folder)
            return tuple(f"draft: {step}" for step in steps)
        with step("loading"):
            other = load_decoder(draft.checkpoint, resolve(draft.checkpoint))
        if other.tokenizer.get_vocab() != self._decoder.tokenizer.get_vocab():
            raise CheckpointError(f"{what}: checkpoint {draft.checkpoint} has another tokenizer than the model")
        maker = DecoderMaker(other, self._recipe, Path(tempfile.mkdtemp(prefix="draft-", dir=self._stage)), self._say)
        _, steps = maker._graph(draft.variant, folder)
        return tuple(f"draft: {step}" for step in (draft.checkpoint, *steps))

    def _convert(self, variant: DecoderVariant) -> tuple[PreTrainedModel, Path, tuple[str, ...]]:
        """The module with a variant's layers, the folder of its fp32 graph, and how it was made."""
        key = variant.model_dump_json(include={"keep_layers", "distill"})
        if key not in self._converted:
            model, steps = self._shrink(variant)
            self._say(f"converting {variant.name} to OpenVINO")
            folder = Path(tempfile.mkdtemp(prefix="converted-", dir=self._stage))
            with step("converting"):
                convert(model, folder)
            self._converted[key] = model, folder, steps
        return self._converted[key]

    def _shrink(self, variant: DecoderVariant) -> tuple[PreTrainedModel, tuple[str, ...]]:
        if variant.keep_layers is None:
            return self._decoder.model, ()
        depth = self._decoder.depth
        layers = kept_layers(variant, depth)
        model = with_layers(self._decoder.model, layers)
        steps = [f"{len(layers)} of {depth} layers kept: {', '.join(str(layer + 1) for layer in layers)}"]
        if variant.distill is not None:
            self._say(f"teaching {variant.name}")
            samples, held = self._samples
            loss = distill(self._decoder, model, variant.distill, self._recipe, samples, held, variant.name)
            steps.append(f"distilled: {variant.distill.epochs} epochs on {len(samples)} samples, dev loss {loss:.4f}")
        return model, tuple(steps)

    @cached_property
    def _samples(self) -> tuple[list[Sample], list[Sample]]:
        """Training data, and what is set aside of it."""
        length = min(self._decoder.context, self._recipe.batch_tokens)
        parts = split_documents(self._recipe)
        train, held = (make_samples(part, self._decoder.tokenizer, length) for part in parts)
        return train, held
