"""Embedding: one vector for a text, packed as the caller wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from millis_server.errors import InvalidField
from millis_server.manifest import Manifest, TaskName
from millis_server.tasks import Prepared
from millis_server.tasks.text_classification import text_rows
from millis_server.tokenizer import Tokenizer, Truncation

Encoding = Literal["float32", "float16", "int8", "binary"]


@dataclass(frozen=True, slots=True)
class Vector:
    """One packed vector."""

    data: bytes
    scale: float
    """Factor from byte to value for int8, else 0."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Asks for the vectors of texts.

    Attributes:
        texts: the texts.
        normalize: whether each vector is scaled to length 1; None is what the checkpoint does.
        dimensions: leading dimensions to keep; 0 is all.
        encoding: how vectors are packed.
        truncation: what happens to a text that is too long.
    """

    texts: Sequence[str]
    normalize: bool | None = None
    dimensions: int = 0
    encoding: Encoding = "float32"
    truncation: Truncation = "end"
    name: ClassVar[str] = "EmbedText"
    answered_by: ClassVar[tuple[TaskName, ...]] = ("embedding",)

    @property
    def inputs(self) -> int:
        """Number of texts."""
        return len(self.texts)

    @property
    def characters(self) -> int:
        """Length of all texts together."""
        return sum(map(len, self.texts))

    def kept_dimensions(self, manifest: Manifest) -> int:
        """Number of dimensions of the answer."""
        return self.dimensions or manifest.dimensions

    def preprocess(self, manifest: Manifest, tokenizer: Tokenizer) -> Prepared:
        """One row for each text.

        Raises:
            InvalidField: the model cannot give what is asked.
        """
        if self.dimensions > manifest.dimensions:
            raise InvalidField(
                "dimensions", f"is {self.dimensions}, vectors of {manifest.model} have {manifest.dimensions}"
            )
        if self.normalize is False and manifest.normalized:
            raise InvalidField(
                "normalize",
                f"is false, but {manifest.model} scales its vectors to length 1 as part of the model",
            )
        return text_rows(self.texts, manifest, tokenizer, self.truncation)

    def postprocess(self, manifest: Manifest, outputs: list[NDArray[np.float32]]) -> list[Vector]:
        """Packs the vectors. `outputs`: one vector [dimensions] for each text."""
        vectors = np.stack(outputs)[:, : self.kept_dimensions(manifest)]
        normalize = manifest.normalized if self.normalize is None else self.normalize
        already = manifest.normalized and vectors.shape[1] == manifest.dimensions
        if normalize and not already:
            vectors = unit_length(vectors)
        return pack_vectors(vectors, self.encoding)


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales vectors [n, dimensions] to length 1; a vector of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled


def pack_vectors(vectors: NDArray[np.float32], encoding: Encoding) -> list[Vector]:
    """Packs vectors [n, dimensions], little-endian.

    int8 is symmetric with a scale for each vector; binary keeps the sign, as `quantize_embeddings(…, "ubinary")`
    of sentence-transformers does.
    """
    if encoding == "float32":
        return [Vector(row.tobytes(), 0.0) for row in vectors.astype("<f4", copy=False)]
    if encoding == "float16":
        return [Vector(row.tobytes(), 0.0) for row in vectors.astype("<f2")]
    if encoding == "binary":
        return [Vector(row.tobytes(), 0.0) for row in np.packbits(vectors > 0, axis=1)]
    scales = np.maximum(np.abs(vectors).max(axis=1), np.finfo(np.float32).tiny) / 127
    quantized = np.rint(vectors / scales[:, None]).astype(np.int8)
    return [Vector(row.tobytes(), float(scale)) for row, scale in zip(quantized, scales, strict=True)]
