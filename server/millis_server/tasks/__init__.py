"""The tasks: what a model answers, one file each, with two verbs.

`preprocess` turns a request into rows of tokens, `postprocess` turns the model's output into typed results. Tasks
know tensors and the manifest; they do no I/O and know neither protobuf nor Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from millis_server.manifest import Manifest, TaskName
from millis_server.tokenizer import Row, Tokenizer

Result = TypeVar("Result", covariant=True)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows for the model."""

    rows: list[Row]
    truncated: list[int]
    """Indices of the inputs that were shortened."""


class Task(Protocol[Result]):
    """One question to a model, with its inputs."""

    @property
    def name(self) -> str:
        """What the caller asked for, for messages, for example `ClassifyText`."""

    @property
    def answered_by(self) -> tuple[TaskName, ...]:
        """Tasks of the models that can answer it, the preferred first."""

    @property
    def inputs(self) -> int:
        """Number of inputs, the unit of admission."""

    @property
    def characters(self) -> int:
        """Length of all inputs together, the measure of pre-processing."""

    def preprocess(self, manifest: Manifest, tokenizer: Tokenizer) -> Prepared:
        """Turns the inputs into rows.

        Raises:
            InvalidField: the request does not fit the model.
        """

    def postprocess(self, manifest: Manifest, outputs: list[NDArray[np.float32]]) -> Sequence[Result]:
        """Turns one output for each row into one result for each input."""
