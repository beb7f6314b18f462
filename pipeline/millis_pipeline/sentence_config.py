"""What sentence-transformers writes beside a checkpoint about its use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

CONFIG_FILE = "config_sentence_transformers.json"


@dataclass(frozen=True)
class SentenceConfig:
    """The part of the file that changes answers.

    Attributes:
        kind: `SentenceTransformer`, `CrossEncoder` or `SparseEncoder`; empty where it is not said.
        activation: dotted name of what turns a cross-encoder's logit into a score; empty where it is not said.
        prompt: what goes before every text.
    """

    kind: str = ""
    activation: str = ""
    prompt: str = ""


def read_sentence_config(folder: Path) -> SentenceConfig:
    """Reads the file of a checkpoint; one that has none says nothing.

    Raises:
        ValueError: the file is not what sentence-transformers writes.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return SentenceConfig()
    try:
        stated = json.loads(path.read_bytes())
        prompts = stated.get("prompts") or {}
        return SentenceConfig(
            kind=stated.get("model_type") or "",
            activation=stated.get("activation_fn") or "",
            prompt=prompts.get(stated.get("default_prompt_name")) or "",
        )
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from error
