"""What a GenerateText becomes for one model."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from millis_server.chat import ChatTemplates
from millis_server.errors import InvalidField
from millis_server.manifest import Generation, Manifest, Provenance
from millis_server.tasks.generation import TextGeneration

CONTEXT, VOCABULARY = 512, 384


class Unread(Sequence[int]):
    """Very many token ids, none of which may be looked at."""

    def __len__(self) -> int:
        return 15_000_000

    def __getitem__(self, index):
        raise AssertionError("a token is looked at")


def manifest() -> Manifest:
    return Manifest(
        model="writer",
        variant="fp32",
        task="text-generation",
        max_tokens=CONTEXT,
        files=dict.fromkeys(("w", "tokenizer.json"), "0" * 64),
        size_bytes=1,
        provenance=Provenance(checkpoint="none", created_at="2026-01-01T00:00:00Z"),
        generation=Generation(weights=("w",), vocabulary=VOCABULARY, eos_ids=(2,), cache_tokens=4096),
    )


def prepared(ids: Sequence[int]) -> Sequence[int]:
    tokenizer = None  # token ids need none
    return TextGeneration(ids=ids).prepare(manifest(), tokenizer, ChatTemplates()).ids


def test_the_longest_prompt_of_token_ids_leaves_one_for_the_answer():
    assert prepared([VOCABULARY - 1] * (CONTEXT - 1)) == [VOCABULARY - 1] * (CONTEXT - 1)


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (Unread(), "token_ids.ids: has 15000000 tokens; with at least 1 of the answer the limit is 512"),
        ([VOCABULARY] * CONTEXT, "token_ids.ids: has 512 tokens; with at least 1 of the answer the limit is 512"),
        ([5, VOCABULARY], "token_ids.ids[1]: is 384; this model has ids from 0 to 383"),
    ],
    ids=["unread", "long", "unknown"],
)
def test_token_ids_are_counted_before_they_are_looked_at(ids, problem):
    with pytest.raises(InvalidField) as caught:
        prepared(ids)
    assert str(caught.value) == problem
