"""The command line of `millis build`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import get_args

from millis_pipeline.options import add_repository, count
from millis_server.manifest import EngineName, TaskName

DESCRIPTION = """From a checkpoint, or from labelled data, to published and measured variants.

Stages: data, finetune, the candidates (distill, prune, export to ONNX, quantize), verify and measure, gate, publish,
report."""


def build_parser() -> argparse.ArgumentParser:
    """The options of `millis build`."""
    parser = argparse.ArgumentParser(prog="millis build", description=DESCRIPTION)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a recipe (.yaml), or a checkpoint: a folder, a hub id, or package:NAME",
    )
    parser.add_argument("--task", choices=get_args(TaskName), help="what a checkpoint answers, when it does not say")
    parser.add_argument(
        "--engine",
        choices=get_args(EngineName),
        help="what generates text from a checkpoint; transformers (PyTorch) also takes what cannot become a graph",
    )
    parser.add_argument("--name", help="logical model name; the default is the recipe's or the checkpoint's")
    parser.add_argument(
        "--eval-data",
        type=Path,
        help="labelled data to measure a checkpoint on: texts with labels (CSV, JSONL), words with tags (CoNLL); for "
        "embeddings and cross-encoders pairs: sentence1, sentence2, score, or query, document, relevance",
    )
    parser.add_argument("--text-column", default="text", help="column of the texts in --eval-data")
    parser.add_argument("--label-column", default="label", help="column of the labels in --eval-data")
    parser.add_argument(
        "--label-separator",
        metavar="TEXT",
        help="what stands between the labels of a text in --eval-data that can have several; the default is 1 label",
    )
    parser.add_argument("--data-dir", type=Path, help="folder that a recipe's data paths count from")
    add_repository(parser, "model repository to publish into")
    parser.add_argument(
        "--reports",
        type=Path,
        default=Path(os.environ.get("MILLIS_STATE_DIR", ".millis")) / "reports",
        help="folder for the reports",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep fine-tuned checkpoints and students in this folder; a student that is there already, made from the "
        "same teacher and texts in the same way, is not trained again",
    )
    parser.add_argument("--teacher", metavar="CHECKPOINT", help="goes before a recipe's key teacher")
    parser.add_argument(
        "--jobs",
        type=count,
        default=1,
        metavar="N",
        help="models that are made side by side, of several; each is measured alone (default: %(default)s)",
    )
    return parser
