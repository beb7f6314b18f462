"""Changes the words of questions from epoch to epoch, so that a small model does not learn them by heart.

After "EDA: Easy Data Augmentation Techniques" (Wei and Zou 2019): words are left out; in half of the questions capital
letters go, and in half of them punctuation does.
"""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from dataclasses import replace

from millis_pipeline.decoders.dialogues import Document, Message

PLAIN = 0.5
"""Share of questions that lose their capital letters, and of those that lose their punctuation."""

PUNCTUATION = str.maketrans("", "", string.punctuation)


def noisy_documents(documents: Sequence[Document], share: float, generator: random.Random) -> list[Document]:
    """Copies of dialogues with other questions; the answers, system messages and texts are the same.

    Args:
        documents: to copy.
        share: of the words of a question that are left out; one word at least is kept.
        generator: of random numbers.
    """
    return [
        replace(document, messages=tuple(_changed(message, share, generator) for message in document.messages))
        for document in documents
    ]


def _changed(message: Message, share: float, generator: random.Random) -> Message:
    if message["role"] != "user":
        return message
    words = message["content"].split(" ")
    kept = [word for word in words if generator.random() >= share] or [generator.choice(words)]
    text = " ".join(kept)
    if generator.random() < PLAIN:
        text = text.lower()
    if generator.random() < PLAIN:
        text = text.translate(PUNCTUATION)
    return {"role": "user", "content": text if text.strip() else message["content"]}
