"""Reads all that the sources of a build name, before the first model is made: a fault of the last one would else be
told after the training of the others.

Nothing is kept: a build reads its data again, which takes a moment beside what it does with it.
"""

from __future__ import annotations

from pathlib import Path

from millis_pipeline.checkpoint import answers_of, infer_task
from millis_pipeline.data import named
from millis_pipeline.decoders.dialogues import read_documents
from millis_pipeline.decoders.recipe import DecoderRecipe
from millis_pipeline.job import Job, check_evaluation, read_evaluation
from millis_pipeline.recipe_data import labelled_data, taught_data
from millis_pipeline.sources import local_folder
from millis_pipeline.students import check_variants
from millis_pipeline.training_texts import check_texts
from millis_server.manifest import TaskName


def check_inputs(job: Job | DecoderRecipe) -> None:
    """Checks the files of one source, their labels, and what its variants ask of a checkpoint that is here.

    What hangs on a checkpoint that must be downloaded first is checked when its model is made.

    Raises:
        CheckpointError: there is no such checkpoint, or a variant cannot be made of it.
        DataError: a file cannot be used, or has a label that is not known.
        ExportError: a variant is to be compiled, and there is no compiler.
        RecipeError: an option does not go with the checkpoint.
    """
    if isinstance(job, DecoderRecipe):
        _check_decoder(job)
        return
    folder = local_folder(job.source)
    if folder is not None:
        check_variants(job.variants, folder)
    if job.recipe is not None:
        check_texts(job.recipe)
    if job.trains:
        assert job.recipe is not None, "only a recipe trains. This is a bug."
        labelled_data(job.recipe)
    elif folder is not None:
        _check_answers(job, job.task or infer_task(job.source, folder), folder)
    elif job.task is not None:
        read_evaluation(job)


def _check_answers(job: Job, task: TaskName, folder: Path) -> None:
    """Checks that a checkpoint which is taken as it is can give the labels of the data."""
    examples, _ = read_evaluation(job)
    if task not in ("text-classification", "token-classification"):
        return
    answers = answers_of(job.source, folder, task)
    check_evaluation(job, examples, answers)
    if job.recipe is not None and job.recipe.train is not None:
        taught_data(job.recipe, answers)


def _check_decoder(recipe: DecoderRecipe) -> None:
    drafts = [variant.draft.checkpoint for variant in recipe.variants if variant.draft is not None]
    for source in (recipe.checkpoint, *drafts):
        if source is not None:
            local_folder(source)
    for key in ("train", "dev", "test"):
        path = getattr(recipe, key)
        if path is not None:
            with named(key if recipe.digest else "--eval-data"):  # without a recipe's file it is the option's
                read_documents(path)
