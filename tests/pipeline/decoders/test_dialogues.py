"""Dialogues and texts: how they are read, tokenized, weighted and batched."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from millis_pipeline.data import DataError
from millis_pipeline.decoders.dialogues import Document, read_documents
from millis_pipeline.decoders.samples import Sample, make_samples, pad_samples, prompt_of, token_batches
from tests.pipeline.decoders.tiny_decoders import tokenizer

TALK = (
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is my order?"},
    {"role": "assistant", "content": "Please open My orders."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "You can return an item."},
)


def written(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_dialogues_and_texts_are_read(tmp_path: Path) -> None:
    talk = written(tmp_path / "talk.jsonl", {"messages": TALK}, {"messages": TALK[1:3]})
    assert read_documents(talk) == [Document(messages=TALK), Document(messages=TALK[1:3])]
    (tmp_path / "text.txt").write_text("One.\n\nTwo.\n<|endoftext|>\nThree.\n<|endoftext|>\n")
    assert read_documents(tmp_path / "text.txt") == [Document(text="One.\n\nTwo."), Document(text="Three.")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "'messages' is missing, or no list of messages"),
        ({"messages": [{"role": "user"}]}, "message 1: it needs 'role' and 'content', and nothing else"),
        (
            {"messages": [{"role": "bot", "content": "x"}]},
            "message 1: role must be one of system, user, assistant, not 'bot'",
        ),
        ({"messages": [TALK[1], {"role": "assistant", "content": " "}]}, "message 2: content is empty or no text"),
        (
            {"messages": TALK[1:4]},
            (
                "roles must be user and assistant in turn, after at most 1 system message and with an assistant last, "
                "not user, assistant, user"
            ),
        ),
    ],
)
def test_a_wrong_dialogue_is_named_with_its_line(tmp_path: Path, row: object, message: str) -> None:
    path = written(tmp_path / "talk.jsonl", {"messages": TALK}, row)
    with pytest.raises(DataError) as caught:
        read_documents(path)
    assert str(caught.value) == f"{path}:2: {message}"


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"talk\.jsonl: it holds no examples$"):
        read_documents(written(tmp_path / "talk.jsonl"))


def test_only_what_the_assistant_wrote_is_to_be_written() -> None:
    (sample,) = make_samples([Document(messages=TALK)], tokenizer(), 128)
    own = [number for number, written in zip(sample.ids, sample.written, strict=True) if written]
    assert tokenizer().decode(own) == "Please open My orders.<|eos|>You can return an item.<|eos|>"
    assert tokenizer().decode(sample.ids) == (
        "<|bos|><|system|>Be kind.<|user|>Where is my order?<|assistant|>Please open My orders.<|eos|>"
        "<|user|>Thanks<|assistant|>You can return an item.<|eos|>"
    )


def test_texts_are_cut_into_pieces_that_fit() -> None:
    samples = make_samples([Document(text="Where is my order? " * 4)], tokenizer(), 8)
    ids = [number for sample in samples for number in sample.ids]
    assert tokenizer().decode(ids) == "<|bos|>" + "Where is my order? " * 4 + "<|eos|>"
    assert {len(sample.ids) for sample in samples[:-1]} == {8}
    assert {sample.written.count(False) for sample in samples} == {1}


def test_a_prompt_ends_where_the_last_answer_begins() -> None:
    prompt = prompt_of(Document(messages=TALK[1:3]), tokenizer())
    assert tokenizer().decode(prompt) == "<|bos|><|user|>Where is my order?<|assistant|>"
    text = prompt_of(Document(text="Where is my order?"), tokenizer())
    assert text == tokenizer()("Where is my order?")["input_ids"]


def test_dialogues_need_a_template_and_an_answer_that_fits() -> None:
    with pytest.raises(DataError, match=r"^no dialogue has an answer within the first 4 tokens$"):
        make_samples([Document(messages=TALK)], tokenizer(), 4)
    plain = type(tokenizer())(tokenizer_object=tokenizer().backend_tokenizer)
    with pytest.raises(DataError, match=r"^the data holds dialogues, and the checkpoint's tokenizer has no chat"):
        make_samples([Document(messages=TALK)], plain, 128)


def test_batches_hold_every_sample_once_and_no_more_tokens_than_asked() -> None:
    lengths = random.Random(1).choices(range(1, 40), k=100)
    samples = [Sample([number] * length, [True] * length) for number, length in enumerate(lengths)]
    batches = list(token_batches([*samples, Sample([999] * 80, [True] * 80)], 64, random.Random(0)))
    assert sorted(sample.ids[0] for batch in batches for sample in batch) == [*range(100), 999]
    padded = [len(batch) * max(len(sample.ids) for sample in batch) for batch in batches]
    assert sorted(padded)[-1] == 80
    assert sorted(padded)[-2] <= 64
    assert sum(padded) < 1.2 * (sum(lengths) + 80)


def test_padding_weighs_nothing() -> None:
    ids, weights = pad_samples([Sample([5, 6, 7], [False, True, True]), Sample([8], [True])], 0, 0.25)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.25, 1.0, 1.0], [1.0, 0.0, 0.0]]))
