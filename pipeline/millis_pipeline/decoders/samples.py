"""Turns dialogues and texts into token ids with a weight for each: what training and measuring run on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from millis_pipeline.data import DataError
from millis_pipeline.decoders.dialogues import Document, Message


@dataclass(frozen=True)
class Sample:
    """Token ids that are read in one go.

    Attributes:
        ids: special tokens included.
        written: for each token whether the assistant wrote it, or, in a text, whether it is to be predicted.
    """

    ids: list[int]
    written: list[bool]


def render(tokenizer: PreTrainedTokenizerFast, messages: Sequence[Message], *, prompt: bool) -> str:
    """The conversation as the model reads it.

    Args:
        tokenizer: with a chat template.
        messages: of the conversation.
        prompt: whether the assistant is to go on.

    Raises:
        DataError: the template refuses the conversation.
    """
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template raises what it likes
        raise DataError(f"the chat template refuses a dialogue: {' '.join(str(error).split())[:200]}") from error
    return text


def make_samples(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, context: int) -> list[Sample]:
    """Tokenizes dialogues by the chat template, and texts in pieces that fit.

    A dialogue that is longer than the context loses its end; one whose answers are all lost is left out.

    Args:
        documents: to tokenize.
        tokenizer: of the model.
        context: most tokens of a sample.

    Raises:
        DataError: there are dialogues, and the tokenizer has no chat template; or nothing fits.
    """
    if any(document.messages for document in documents) and not tokenizer.chat_template:
        raise DataError("the data holds dialogues, and the checkpoint's tokenizer has no chat template")
    samples: list[Sample] = []
    for document in tqdm(documents, desc="tokenizing", unit="document", leave=False, disable=None):
        if document.messages:
            sample = _dialogue(document.messages, tokenizer, context)
            samples += [sample] if any(sample.written) else []
        else:
            samples += _pieces(document.text, tokenizer, context)
    if not samples:
        raise DataError(f"no dialogue has an answer within the first {context} tokens")
    return samples


def prompt_of(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """A dialogue up to its last answer, or a text, as a prompt."""
    if document.messages:
        text = render(tokenizer, document.messages[:-1], prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
    return _begun(tokenizer, tokenizer(document.text, add_special_tokens=True)["input_ids"])


def token_batches(samples: Sequence[Sample], tokens: int, shuffle: random.Random) -> Iterator[list[Sample]]:
    """Batches of like length in random order, each at most `tokens` large when padded; a longer sample stands alone."""
    order = list(samples)
    shuffle.shuffle(order)
    cut: list[list[Sample]] = []
    piece = max(1, 16 * tokens * len(order) // max(1, sum(len(sample.ids) for sample in order)))
    for start in range(0, len(order), piece):
        batch: list[Sample] = []
        for sample in sorted(order[start : start + piece], key=lambda one: len(one.ids)):
            if batch and (len(batch) + 1) * len(sample.ids) > tokens:
                cut.append(batch)
                batch = []
            batch.append(sample)
        cut.append(batch)
    shuffle.shuffle(cut)
    yield from cut


def pad_samples(batch: Sequence[Sample], pad_id: int, other_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and weights in the loss, [samples, tokens], padded on the right to the longest.

    There is no mask: no token looks to its right, and without one attention takes its fast path.

    Args:
        batch: to pad.
        pad_id: token id that fills shorter rows.
        other_weight: of tokens that the assistant did not write.
    """
    width = max(len(sample.ids) for sample in batch)
    ids = torch.full((len(batch), width), pad_id)
    weights = torch.zeros((len(batch), width))
    for row, sample in enumerate(batch):
        length = len(sample.ids)
        ids[row, :length] = torch.tensor(sample.ids)
        weights[row, :length] = torch.tensor([1.0 if written else other_weight for written in sample.written])
    return ids, weights


def _dialogue(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast, context: int) -> Sample:
    whole = render(tokenizer, messages, prompt=False)
    spans = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            before = render(tokenizer, messages[:place], prompt=True)
            after = render(tokenizer, messages[: place + 1], prompt=False)
            # Some templates drop parts of earlier answers: what does not stand in the whole is not learned from.
            if whole.startswith(after) and after.startswith(before):
                spans.append((len(before), len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    written = [any(start <= place[0] < end for start, end in spans) for place in encoded["offset_mapping"]]
    return Sample(encoded["input_ids"][:context], written[:context])


def _pieces(text: str, tokenizer: PreTrainedTokenizerFast, context: int) -> list[Sample]:
    ids = _begun(tokenizer, tokenizer(text, add_special_tokens=True)["input_ids"])
    if tokenizer.eos_token_id is not None and ids[-1] != tokenizer.eos_token_id:
        ids = [*ids, tokenizer.eos_token_id]
    pieces = [ids[start : start + context] for start in range(0, len(ids), context)]
    # The first token of a piece has nothing before it to be predicted from.
    return [Sample(piece, [place > 0 for place in range(len(piece))]) for piece in pieces if len(piece) > 1]


def _begun(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    """Some tokenizers end what they read, also a prompt."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
