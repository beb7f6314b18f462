"""One model to build: from a recipe, or from a checkpoint and the command line."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from millis_pipeline.checkpoint import Answers, infer_task
from millis_pipeline.data import named, read_text_examples, read_token_examples
from millis_pipeline.decoders.recipe import DEFAULT_VARIANTS as OPENVINO_VARIANTS
from millis_pipeline.decoders.recipe import PYTORCH_VARIANTS, DecoderRecipe
from millis_pipeline.pairs import ALIKE, RANKED, EvaluationExamples, PairExamples, columns_of, read_pairs
from millis_pipeline.recipe import Recipe, RecipeError, load_recipe
from millis_pipeline.recipe_data import check_answers, dev_key, train_and_dev
from millis_pipeline.sources import PACKAGE_PREFIX, resolve
from millis_pipeline.variants import DEFAULT_VARIANTS, VariantRecipe
from millis_server.manifest import EngineName, TaskName


@dataclass(frozen=True)
class Job:
    """One model to build.

    Attributes:
        name: logical model name.
        source: checkpoint as the user named it.
        task: None takes the one that the checkpoint implies.
        recipe: None builds the checkpoint as it is.
        evaluation: file of labelled data; None takes the dev data of a recipe that trains, or the built-in texts.
        dataset: its name.
        trains: whether the checkpoint is fine-tuned first.
        text_column, label_column, label_separator: where texts and labels stand in it.
        max_quality_loss: most that a variant may lose against PyTorch.
        variants: to make.
    """

    name: str
    source: str
    task: TaskName | None
    recipe: Recipe | None
    evaluation: Path | None
    dataset: str
    trains: bool = False
    text_column: str = "text"
    label_column: str = "label"
    label_separator: str | None = None
    max_quality_loss: float = 0.01
    variants: tuple[VariantRecipe, ...] = DEFAULT_VARIANTS

    @property
    def evaluation_key(self) -> str:
        """The key of the recipe, or the option, that names the data that it is measured on."""
        if self.recipe is None:
            return "--eval-data"
        return "test" if self.evaluation is not None else dev_key(self.recipe)


def read_job(source: str, arguments: argparse.Namespace) -> Job | DecoderRecipe:
    """Tells a recipe from a checkpoint by its ending, and reads it.

    Returns:
        A recipe of its own kind for a model that generates text.

    Raises:
        CheckpointError: no --task is given, and the checkpoint does not say what it answers.
        RecipeError: the recipe is wrong, or an option does not go with what is built.
    """
    if source.endswith((".yaml", ".yml")):
        if arguments.engine is not None:
            raise RecipeError(f"--engine: {source} is a recipe; its variants say what generates")
        if arguments.label_separator is not None:
            raise RecipeError(f"--label-separator: {source} is a recipe; its key label_separator says it")
        recipe = load_recipe(Path(source), arguments.data_dir)
        if isinstance(recipe, DecoderRecipe):
            if arguments.teacher is not None:
                raise RecipeError(f"--teacher: {source} generates text; its key checkpoint says what it begins from")
            return recipe.model_copy(update={"name": arguments.name or recipe.name})
        teacher = arguments.teacher or recipe.teacher
        return Job(
            name=arguments.name or recipe.name,
            source=teacher or recipe.checkpoint,
            task=recipe.task,
            recipe=recipe,
            evaluation=recipe.test,
            dataset=recipe.dataset or recipe.name,
            trains=recipe.train is not None and teacher is None,
            text_column=recipe.text_column,
            label_column=recipe.label_column,
            label_separator=recipe.label_separator,
            max_quality_loss=recipe.max_quality_loss,
            variants=recipe.variants,
        )
    if arguments.teacher is not None:
        raise RecipeError(f"--teacher: it goes with a recipe, and {source} is a checkpoint")
    name = arguments.name or Path(source.removeprefix(PACKAGE_PREFIX)).name.lower().replace("_", "-")
    task = arguments.task or _implied(source)
    _check_separator(arguments.label_separator, task, arguments.eval_data)
    if task == "text-generation":
        return _plain_decoder(source, name, arguments.eval_data, arguments.engine)
    if arguments.engine is not None:
        raise RecipeError(f"--engine: it is for checkpoints that generate text, and {source} does not")
    return Job(
        name=name,
        source=source,
        task=arguments.task,
        recipe=None,
        evaluation=arguments.eval_data,
        dataset=arguments.eval_data.name if arguments.eval_data else "",
        text_column=arguments.text_column,
        label_column=arguments.label_column,
        label_separator=arguments.label_separator,
    )


def _implied(source: str) -> TaskName | None:
    """What a checkpoint answers; one that is not there yet is asked when it is built."""
    return infer_task(source, Path(source)) if Path(source).is_dir() else None


def _check_separator(separator: str | None, task: TaskName | None, evaluation: Path | None) -> None:
    """Refuses `--label-separator` where it would mean nothing."""
    if separator is None:
        return
    if not separator:
        raise RecipeError("--label-separator: it is empty")
    if task not in ("text-classification", None):
        raise RecipeError(f"--label-separator: a model for {task} has no texts with several labels")
    if evaluation is None:
        raise RecipeError("--label-separator: it stands between labels in --eval-data, which is not given")


def _plain_decoder(source: str, name: str, evaluation: Path | None, engine: EngineName | None) -> DecoderRecipe:
    """The recipe that builds a checkpoint as it is."""
    dataset = evaluation.name if evaluation else ""
    variants = PYTORCH_VARIANTS if engine == "transformers" else OPENVINO_VARIANTS
    try:
        return DecoderRecipe(name=name, checkpoint=source, test=evaluation, dataset=dataset, variants=variants)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise RecipeError(f"{source}: {message.replace('test:', '--eval-data:')}") from error


def read_evaluation(job: Job) -> tuple[EvaluationExamples | None, str]:
    """The labelled data that a job is measured on, and its name; None where it has none.

    For embeddings it is pairs of texts, or texts alone; for cross-encoders queries with documents.

    A recipe that trains and names no test data is measured on its dev data, which no weight was fitted to. Quality is
    then a little too good: fine-tuning has stopped where that data was answered best, and exits are calibrated on it.
    Where a teacher is given, it is unseen only if the recipe names a `dev` file, or the teacher was trained by the same
    recipe with the same `seed` and `dev_fraction`.

    Raises:
        DataError: the file cannot be used.
        RecipeError: a checkpoint that does not classify texts was given a separator of labels.
    """
    if job.evaluation is None:
        if job.recipe is None or job.recipe.train is None:
            return None, ""
        return train_and_dev(job.recipe)[1], f"{job.dataset}, dev"
    task = job.task or infer_task(job.source, resolve(job.source))
    if job.recipe is None:
        _check_separator(job.label_separator, task, job.evaluation)
    with named(job.evaluation_key):
        if task == "token-classification":
            return read_token_examples(job.evaluation), job.dataset
        if task in ("embedding", "cross-encoder"):
            known = (RANKED,) if task == "cross-encoder" else ((job.text_column,), ALIKE, RANKED)
            columns = columns_of(job.evaluation, known)
            if columns in (ALIKE, RANKED):
                return read_pairs(job.evaluation, columns), job.dataset
        label = job.label_column if task == "text-classification" else None
        return read_text_examples(job.evaluation, job.text_column, label, job.label_separator), job.dataset


def check_evaluation(job: Job, examples: EvaluationExamples | None, answers: Answers) -> None:
    """Checks that a checkpoint can give the labels of the data that it is measured on.

    Args:
        job: that is measured.
        examples: from `read_evaluation`; pairs have no labels.
        answers: of the checkpoint, or what it is fine-tuned to.

    Raises:
        DataError: it cannot; the message names file and line.
    """
    if examples is None or isinstance(examples, PairExamples):
        return
    path = job.evaluation
    if path is None:
        assert job.recipe is not None, "only a recipe has dev data. This is a bug."
        path = getattr(job.recipe, job.evaluation_key)
    check_answers(examples, answers, job.evaluation_key, path)
