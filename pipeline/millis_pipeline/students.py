"""Makes the smaller modules that a recipe's variants ask for: distilled, pruned, or both; each is trained once."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from millis_pipeline.aot import check_compiler
from millis_pipeline.architectures import Encoder, Shape, Size, shaped, size_of, stated_depth
from millis_pipeline.blocks import check_blocks
from millis_pipeline.checkpoint import Checkpoint, load_tokenizer
from millis_pipeline.distill import (
    check_depth,
    imitate,
    recovered_layers,
    student_loss,
    taken_layers,
    taught_layers,
)
from millis_pipeline.examples import Example
from millis_pipeline.exits import ExitModel, check_exits, exit_loss
from millis_pipeline.progress import step
from millis_pipeline.prune import check_prunable, chosen_shape, measure_importance
from millis_pipeline.recipe import Recipe
from millis_pipeline.teacher import Lesson, Teaching, noisy, teach
from millis_pipeline.training_texts import training_texts
from millis_pipeline.variants import Distill, Exits, Prune, VariantRecipe
from millis_pipeline.vocabulary import check_trimmable

TRAINING_VERSION = 1
"""Goes up when the same recipe would train another student: those that were kept before are then not used."""


def check_variants(variants: Sequence[VariantRecipe], folder: Path) -> None:
    """Checks that of a checkpoint can be made what each variant asks, before anything is trained.

    Args:
        variants: to make.
        folder: of the checkpoint.

    Raises:
        CheckpointError: its architecture is not supported, it has too few layers, heads, neurons or blocks for what is
            asked, its tokenizer cannot be trimmed, or a block that is to stay in fp32 is none of the model's.
        ExportError: a variant is to be compiled, and there is no compiler.
    """
    if any(variant.compile is not None for variant in variants):
        check_compiler()
    reshaped = [variant for variant in variants if variant.trained or variant.trim is not None]
    if reshaped:
        _check_shapes(reshaped, size_of(folder))
    for variant in variants:
        if variant.trim is not None:
            check_trimmable(load_tokenizer(str(folder), folder), variant.name)
        if variant.quantize is not None and variant.quantize.keep_fp32 not in (0, "auto"):
            depth = stated_depth(folder)
            if depth is not None:  # else the graph will tell
                check_blocks(variant.quantize.keep_fp32, _depth_left(variant, depth), variant.name)


def _check_shapes(variants: Sequence[VariantRecipe], size: Size) -> None:
    depth = size.layers
    for variant in variants:
        if variant.distill is not None:
            check_depth(taken_layers(variant.distill, depth), depth, variant.name)
        if variant.prune is not None:
            check_prunable(variant.prune, size, variant.name)
        if variant.exits is not None:
            check_exits(variant.exits.after, _depth_left(variant, depth), variant.name)


def _depth_left(variant: VariantRecipe, depth: int) -> int:
    """Layers that a variant has of a model with so many."""
    left = variant.distill.layers if variant.distill is not None else depth
    return left - (variant.prune.layers if variant.prune is not None else 0)


class Students:
    """Makes modules from a teacher.

    Args:
        checkpoint: the teacher.
        recipe: texts, training settings, and all variants that `make` will be asked for.
        examples: `training_texts`.
        scratch: folder for the teacher's outputs.
        kept: folder in which students are kept and, when made in the same way from the same texts, found again.
    """

    def __init__(
        self, checkpoint: Checkpoint, recipe: Recipe, examples: Sequence[Example], scratch: Path, kept: Path | None
    ) -> None:
        self._checkpoint = checkpoint
        self._recipe = recipe
        self._examples = examples
        self._scratch = scratch
        self._kept = kept
        self._made: dict[str, tuple[Checkpoint, tuple[str, ...]]] = {}

    def texts(self, checkpoint: Checkpoint) -> Sequence[Example]:
        """What students learn from, in the same order, as the tokenizer of a checkpoint reads it."""
        if checkpoint.tokenizer is self._checkpoint.tokenizer:
            return self._examples
        with step("tokenizing"):
            return training_texts(self._recipe, checkpoint)

    def make(self, variant: VariantRecipe) -> tuple[Checkpoint, tuple[str, ...]]:
        """The teacher with the smaller module that a variant asks for, and in words how it was made."""
        if not variant.trained:
            return self._checkpoint, ()
        key = self._digest(variant)
        if key not in self._made:
            self._made[key] = self._load(variant, key) or self._train(variant, key)
        return self._made[key]

    def _train(self, variant: VariantRecipe, key: str) -> tuple[Checkpoint, tuple[str, ...]]:
        module = self._checkpoint.module
        depth = len(Encoder(module).layers)
        mapping = taught_layers(depth, depth)
        shapes: list[Shape] = []
        steps: list[str] = []
        if variant.distill is not None:
            shape = Shape(taken_layers(variant.distill, depth))
            mapping = taught_layers(len(shape.layers), depth)
            module = shaped(module, shape)
            self._imitate(module, mapping, variant.distill, f"{variant.name} distill")
            shapes.append(shape)
            steps.append(self._said(variant.distill, shape, depth))
        if variant.prune is not None:
            what = f"{variant.name} importance"
            importance = measure_importance(module, self._checkpoint, self._examples, self._recipe.seed, what)
            shape = chosen_shape(importance, variant.prune)
            mapping = recovered_layers(shape.layers, mapping, depth)
            module = shaped(module, shape)
            self._imitate(module, mapping, variant.prune, f"{variant.name} recovery")
            shapes.append(shape)
            steps.append(self._said(variant.prune, shape, len(importance.layers)))
        if variant.exits is not None:
            if module is self._checkpoint.module:
                module = copy.deepcopy(module)
            module = self._add_exits(module, variant.exits, f"{variant.name} exits")
            steps.append(self._said_of_exits(variant.exits))
        self._save(key, module, shapes, steps)
        return replace(self._checkpoint, module=module.eval()), tuple(steps)

    def _imitate(self, module: nn.Module, mapping: dict[int, int], spec: Distill | Prune, what: str) -> None:
        def loss_of(batch: Sequence[Lesson]) -> torch.Tensor:
            return student_loss(module, self._teaching, mapping, batch, self._checkpoint, spec.temperature)

        self._learn(module, loss_of, spec, what)

    def _add_exits(self, module: nn.Module, spec: Exits, what: str) -> ExitModel:
        model = ExitModel(module, spec.after, self._checkpoint)

        def loss_of(batch: Sequence[Lesson]) -> torch.Tensor:
            return exit_loss(model, self._teaching, batch, self._checkpoint, spec.temperature)

        self._learn(model, loss_of, spec, what)
        return model

    def _learn(
        self,
        module: nn.Module,
        loss_of: Callable[[Sequence[Lesson]], torch.Tensor],
        spec: Distill | Prune | Exits,
        what: str,
    ) -> None:
        if spec.epochs == 0:
            return
        imitate(
            module,
            self._teaching.lessons,
            loss_of,
            spec,
            batch_size=self._recipe.batch_size,
            freeze_embeddings=self._recipe.freeze_embeddings,
            seed=self._recipe.seed,
            what=what,
        )

    @cached_property
    def _teaching(self) -> Teaching:
        """What the teacher says of all texts and their noisy copies, for all students."""
        copies = noisy(self._examples, self._recipe.noisy_copies, self._checkpoint.tokenizer, self._recipe.seed)
        depth = len(Encoder(self._checkpoint.module).layers)
        layers: set[int] = set()
        for variant in self._recipe.variants:
            if variant.trained:
                count = variant.distill.layers if variant.distill is not None else depth
                layers |= {*taught_layers(count, depth).values(), depth - 1}
        return teach(self._checkpoint, [*self._examples, *copies], sorted(layers), self._scratch, "teacher")

    @property
    def _texts(self) -> int:
        """Number of texts that a student learns from, noisy copies included."""
        return len(self._examples) * (1 + self._recipe.noisy_copies)

    def _said(self, spec: Distill | Prune, shape: Shape, depth: int) -> str:
        """A step in words, for manifest and report."""
        if isinstance(spec, Distill):
            taken = ", ".join(str(layer + 1) for layer in shape.layers)
            what = f"distilled into {len(shape.layers)} of {depth} layers, begun as {taken}"
        else:
            kept = f"{len(shape.layers)} of {depth} layers"
            heads = f", heads {'/'.join(str(len(row)) for row in shape.heads)}" if shape.heads else ""
            neurons = f", neurons {'/'.join(str(len(row)) for row in shape.neurons)}" if shape.neurons else ""
            what = f"pruned to {kept}{heads}{neurons}"
        return f"{what}; {spec.epochs} epochs on {self._texts} texts"

    def _said_of_exits(self, spec: Exits) -> str:
        layers = ", ".join(map(str, spec.after))
        return f"exits after layers {layers}; {spec.epochs} epochs on {self._texts} texts"

    def _digest(self, variant: VariantRecipe) -> str:
        """Changes with everything that a student depends on: teacher, texts, steps and training settings."""
        recipe = self._recipe
        steps = {"distill", "prune"} | ({"exits"} if variant.exits is not None else set())
        said = {
            "training version": TRAINING_VERSION,
            "teacher": self._teacher_digest,
            "texts": self._texts_digest,
            "variant": variant.model_dump(include=steps, mode="json"),
            "training": [recipe.batch_size, recipe.freeze_embeddings, recipe.noisy_copies, recipe.seed],
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]

    @cached_property
    def _teacher_digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._checkpoint.module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _texts_digest(self) -> str:
        digest = hashlib.sha256()
        for example in self._examples:
            digest.update(json.dumps([example.ids, example.target]).encode())
        return digest.hexdigest()

    def _save(self, key: str, module: nn.Module, shapes: list[Shape], steps: list[str]) -> None:
        if self._kept is None:
            return
        self._kept.mkdir(parents=True, exist_ok=True)
        how = {"shapes": json.dumps([asdict(shape) for shape in shapes]), "steps": json.dumps(steps)}
        tensors = {name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}
        path = self._kept / f"{key}.safetensors"
        save_file(tensors, path.with_suffix(".partial"), how)
        path.with_suffix(".partial").rename(path)

    def _load(self, variant: VariantRecipe, key: str) -> tuple[Checkpoint, tuple[str, ...]] | None:
        path = self._kept / f"{key}.safetensors" if self._kept is not None else None
        if path is None or not path.is_file():
            return None
        with safe_open(path, "pt") as file:
            how = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        module = self._checkpoint.module
        for shape in json.loads(how["shapes"]):
            module = shaped(module, Shape(**shape))
        if variant.exits is not None:
            module = ExitModel(copy.deepcopy(module), variant.exits.after, self._checkpoint)
        module.load_state_dict(tensors)
        return replace(self._checkpoint, module=module.eval()), tuple(json.loads(how["steps"]))
