"""Makes the files of every variant that a recipe asks for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from millis_pipeline.decoders.checkpoint import Decoder
from millis_pipeline.decoders.compress import compress
from millis_pipeline.decoders.convert import GRAPH_FILE, WEIGHTS_FILE, convert
from millis_pipeline.decoders.recipe import DecoderRecipe, DecoderVariant
from millis_pipeline.decoders.samples import Sample, make_samples
from millis_pipeline.decoders.shrink import distill, kept_layers, with_layers
from millis_pipeline.decoders.tokenizer import ENGINE_FILES, write_engine_tokenizer
from millis_pipeline.decoders.train import split_documents
from millis_pipeline.generation_config import kv_cache_precision
from millis_pipeline.tokenizer import write_tokenizer
from millis_server.manifest import TOKENIZER_FILE

GRAPH_FILES = (GRAPH_FILE, WEIGHTS_FILE)


@dataclass(frozen=True)
class DecoderCandidate:
    """A variant as it was made, not yet measured.

    Attributes:
        variant: what was asked for.
        folder: with graph and tokenizer.
        model: that the graph was converted from.
        steps: in words how it was made.
        guided: whether the engine's tokenizer is there.
    """

    variant: DecoderVariant
    folder: Path
    model: PreTrainedModel
    steps: tuple[str, ...]
    guided: bool

    @property
    def name(self) -> str:
        """Name of the variant."""
        return self.variant.name

    @property
    def kv_precision(self) -> str:
        """Of the engine's memory, when it is served."""
        return kv_cache_precision(self.name)

    @property
    def graphs(self) -> list[Path]:
        """Files of the model."""
        return [self.folder / name for name in GRAPH_FILES]

    @property
    def files(self) -> list[Path]:
        """Everything that is published of it, but for the manifest."""
        return [*self.graphs, self.folder / TOKENIZER_FILE, *sorted(self.folder.glob("openvino_*tokenizer.*"))]


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
        self.unguided = write_engine_tokenizer(decoder.tokenizer, self._tokenizers)
        self._converted: dict[str, tuple[PreTrainedModel, Path, tuple[str, ...]]] = {}

    def make(self, variant: DecoderVariant) -> DecoderCandidate:
        """Makes one variant.

        Raises:
            CheckpointError: layers cannot be left out.
            ConvertError: the model cannot be converted or compressed.
        """
        model, graph, steps = self._convert(variant)
        folder = self._stage / f"candidate-{variant.name}"
        folder.mkdir()
        if variant.weights == "fp32":
            for name in GRAPH_FILES:
                shutil.copyfile(graph / name, folder / name)
        else:
            self._say(f"compressing {variant.name}")
            steps = (*steps, compress(graph, folder, variant))
        for name in (TOKENIZER_FILE, *(() if self.unguided else ENGINE_FILES)):
            shutil.copyfile(self._tokenizers / name, folder / name)
        return DecoderCandidate(variant, folder, model, steps, guided=not self.unguided)

    def _convert(self, variant: DecoderVariant) -> tuple[PreTrainedModel, Path, tuple[str, ...]]:
        """The module with a variant's layers, the folder of its fp32 graph, and how it was made."""
        key = variant.model_dump_json(include={"keep_layers", "distill"})
        if key not in self._converted:
            model, steps = self._shrink(variant)
            self._say(f"converting {variant.name} to OpenVINO")
            folder = Path(tempfile.mkdtemp(prefix="converted-", dir=self._stage))
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
