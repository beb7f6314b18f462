"""Questions that change from epoch to epoch."""

from __future__ import annotations

import random

from millis_pipeline.decoders.dialogues import Document
from millis_pipeline.decoders.noise import noisy_documents

QUESTION = "Where is My order, and why is it late?"
TALK = Document(
    messages=(
        {"role": "system", "content": "Be Kind."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "It is On its way."},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "Yes."},
    )
)


def test_only_questions_change_and_they_lose_about_as_many_words_as_asked() -> None:
    copies = noisy_documents([TALK] * 400, 0.25, random.Random(0))
    assert {copy.messages[0]["content"] for copy in copies} == {"Be Kind."}
    assert {copy.messages[2]["content"] for copy in copies} == {"It is On its way."}
    assert {copy.messages[3]["content"] for copy in copies} == {"?"}
    questions = [copy.messages[1]["content"] for copy in copies]
    words = sum(len(question.split()) for question in questions) / 400
    assert 0.7 < words / len(QUESTION.split()) < 0.8
    plain = [question for question in questions if question == question.lower()]
    assert 150 < len(plain) < 280
    assert sum("?" in question or "," in question for question in questions) < 250
    allowed = {*QUESTION.split(), *QUESTION.lower().split(), "order", "late", "My"}
    assert {word for question in questions for word in question.split()} <= allowed


def test_texts_stay_and_every_question_keeps_a_word() -> None:
    text = Document(text="Once upon a time.")
    assert noisy_documents([text], 0.5, random.Random(0)) == [text]
    copies = noisy_documents([TALK] * 50, 0.99, random.Random(0))
    assert all(copy.messages[1]["content"] for copy in copies)
