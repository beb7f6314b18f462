"""Adds shallow variants to a model of a repository, so that there is a family to route over.

    python -m benchmarks.family --recipe pipeline/recipes/intent/recipe.yaml --repository REPOSITORY --layers 2

For each depth the first layers of the recipe's checkpoint are fine-tuned by the recipe itself and published, fp32
and int8, as `depth2-fp32` and `depth2-int8` with what was measured of them. They stand in for variants that a
recipe distils or prunes; a benchmark of routing needs true differences in speed and quality, not the best students.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import yaml
from transformers import AutoModel, AutoTokenizer

from millis_pipeline import build
from millis_pipeline.checkpoint import resolve
from millis_pipeline.publish import publish, staging, write_version
from millis_pipeline.recipe import Recipe, load_recipe
from millis_server.manifest_files import read_manifest

QUANTIZED = ("fp32", "int8")


def main() -> None:
    """Builds and publishes a variant pair for each depth."""
    arguments = _parser().parse_args()
    recipe = load_recipe(arguments.recipe, arguments.data_dir)
    for layers in arguments.layers:
        with tempfile.TemporaryDirectory(prefix="millis-family-") as scratch:
            _build(recipe, arguments.recipe, layers, Path(scratch))
            _publish(recipe.name, layers, Path(scratch) / "repository", arguments.repository)


def _build(recipe: Recipe, source: Path, layers: int, scratch: Path) -> None:
    """Runs the recipe on the first layers of its checkpoint."""
    shallow = scratch / "checkpoint"
    folder = resolve(recipe.checkpoint)
    model = AutoModel.from_pretrained(folder)
    model.encoder.layer = model.encoder.layer[:layers]
    model.config.num_hidden_layers = len(model.encoder.layer)
    model.save_pretrained(shallow)
    AutoTokenizer.from_pretrained(folder).save_pretrained(shallow)
    changes = {"checkpoint": str(shallow)}
    changes |= {key: str(path.resolve()) for key in ("train", "dev", "test") if (path := getattr(recipe, key))}
    described = scratch / "recipe.yaml"
    described.write_text(yaml.safe_dump(yaml.safe_load(source.read_text("utf-8")) | changes), "utf-8")
    options = ["--repository", str(scratch / "repository"), "--reports", str(scratch / "reports")]
    if code := build.main([str(described), *options]):
        sys.exit(code)


def _publish(name: str, layers: int, built: Path, repository: Path) -> None:
    with staging(repository) as stage:
        staged = []
        for variant in QUANTIZED:
            source = built / f"{name}-{variant}" / "1"
            changes = {"variant": f"depth{layers}-{variant}", "default_variant": False}
            manifest = read_manifest(source).model_copy(update=changes)
            folder = stage / manifest.triton_model
            shutil.copytree(source, folder)
            write_version(folder, manifest)
            staged.append((folder, manifest))
        publish(repository, staged)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("pipeline/recipes/intent/recipe.yaml"))
    parser.add_argument("--data-dir", type=Path, help="folder that the recipe's data paths count from")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--layers", type=int, nargs="+", default=[2], help="depths to build")
    return parser


if __name__ == "__main__":
    main()
