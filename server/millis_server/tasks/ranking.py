"""Ranking: documents in the order of their relevance to a query.

With a cross-encoder query and document are read together; with an embedding model (bi-encoder) each is read
alone and the vectors are compared. Reimers and Gurevych 2019, "Sentence-BERT", describes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from millis_server.errors import InputTooLong
from millis_server.manifest import Manifest, TaskName
from millis_server.tasks import Prepared
from millis_server.tasks.activations import sigmoid
from millis_server.tasks.embedding import unit_length
from millis_server.tokenizer import QueryTooLong, Tokenizer, TooLong, Truncation


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document's place in the request, and its score."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """Asks for the order of documents.

    Attributes:
        query: what is looked for.
        documents: where it is looked for.
        top_k: most documents to return; 0 is all.
        truncation: what happens to a document that is too long.
    """

    query: str
    documents: Sequence[str]
    top_k: int = 0
    truncation: Truncation = "end"
    name: ClassVar[str] = "RankTexts"
    answered_by: ClassVar[tuple[TaskName, ...]] = ("cross-encoder", "embedding")

    @property
    def inputs(self) -> int:
        """Number of documents."""
        return len(self.documents)

    @property
    def characters(self) -> int:
        """Length of the query and of all documents together."""
        return len(self.query) + sum(map(len, self.documents))

    def preprocess(self, manifest: Manifest, tokenizer: Tokenizer) -> Prepared:
        """One row for each pair (cross-encoder), or for the query and then each document (bi-encoder)."""
        try:
            if manifest.task == "cross-encoder":
                return Prepared(*tokenizer.pair_rows(self.query, self.documents, self.truncation))
            rows, truncated = tokenizer.rows([self.query, *self.documents], self.truncation)
            return Prepared(rows, [index - 1 for index in truncated if index > 0])
        except QueryTooLong as error:
            raise InputTooLong("query", str(error)) from error
        except TooLong as error:
            place = error.index - (manifest.task == "embedding")
            raise InputTooLong(
                "query" if place < 0 else f"documents[{place}]",
                f"has {error.tokens} tokens, the limit of {manifest.model} is {manifest.max_tokens}",
            ) from error

    def postprocess(self, manifest: Manifest, outputs: list[NDArray[np.float32]]) -> list[Ranked]:
        """Documents, best first; equal scores keep the order of the request."""
        whole = np.stack(outputs)
        if manifest.task == "cross-encoder":
            scores = whole[:, 0]
            if manifest.activation == "sigmoid":
                scores = sigmoid(scores)
        else:
            vectors = whole if manifest.normalized else unit_length(whole)
            scores = vectors[1:] @ vectors[0]
        order = np.argsort(-scores, kind="stable")[: self.top_k or None]
        return [Ranked(int(index), float(scores[index])) for index in order]
