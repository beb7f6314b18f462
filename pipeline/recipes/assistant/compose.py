"""Combine the hand-written sentences of `topics.jsonl` into `train.jsonl`, `test.jsonl` and `articles.jsonl`.

The script only combines: it writes no text of its own except the line that opens a system message. The seed is fixed,
so the same topics always give the same files. Run it with `python compose.py`.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).parent
SEED = 42
TRAIN_COUNTS = {"plain": 1800, "follow_up": 400, "two_topics": 1200, "grounded": 600}
TEST_FORMS = ("plain", "grounded", "two_topics")  # follow-up questions have no held-out phrasings
OPENERS = {"greeting"}  # never the second of two topics
CLOSERS = {"thanks", "goodbye"}  # never the first of two topics

Dialogue = list[dict[str, str]]


class FollowUp(TypedDict):
    """A second question about the same topic, in several phrasings."""

    questions: list[str]
    answers: list[str]


class Topic(TypedDict):
    """One line of `topics.jsonl`; `article` is empty where no help article exists."""

    id: str
    title: str
    article: str
    questions: list[str]
    test_questions: list[str]
    answers: list[str]
    follow_up: FollowUp


class Composer:
    """Builds dialogues, none of them twice."""

    def __init__(self, topics: list[Topic], rng: random.Random, ask: Callable[[Topic], str]) -> None:
        self.topics = topics
        self.rng = rng
        self.ask = ask
        self.seen: set[str] = set()

    def dialogue(self, form: str, topic: Topic, question: str | None = None, *, distract: bool = False) -> Dialogue:
        """Return a new dialogue of this form about `topic`, with `question` where one is given."""
        while True:
            messages = self._compose(form, topic, question or self.ask(topic), distract)
            key = json.dumps(messages)
            if key not in self.seen:
                self.seen.add(key)
                return messages

    def _compose(self, form: str, topic: Topic, question: str, distract: bool) -> Dialogue:
        turn = self._turn(question, topic["answers"])
        if form == "follow_up":
            return turn + self._turn(self.rng.choice(topic["follow_up"]["questions"]), topic["follow_up"]["answers"])
        if form == "two_topics":
            barred = CLOSERS if topic["id"] in CLOSERS else OPENERS | {topic["id"]}
            other = self.rng.choice([t for t in self.topics if t["id"] not in barred])
            other_turn = self._turn(self.ask(other), other["answers"])
            return other_turn + turn if topic["id"] in CLOSERS else turn + other_turn
        if form == "grounded":
            return [{"role": "system", "content": self._context(topic, 2 if distract else 1)}, *turn]
        return turn

    def _turn(self, question: str, answers: list[str]) -> Dialogue:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": self.rng.choice(answers)}]

    def _context(self, topic: Topic, count: int) -> str:
        """Return the system message: the topic's article if it has one, filled up to `count` with others."""
        chosen = [topic] if topic["article"] else []
        others = [t for t in self.topics if t["article"] and t["id"] != topic["id"]]
        chosen += self.rng.sample(others, count - len(chosen))
        self.rng.shuffle(chosen)
        return "\n\n".join(["Answer from this text.", *(f"{t['title']}: {t['article']}" for t in chosen)])


def train_dialogues(topics: list[Topic], rng: random.Random) -> list[Dialogue]:
    """Return the training dialogues: every topic in every form, every question about equally often."""
    decks: dict[str, Iterator[str]] = {t["id"]: cycle(rng.sample(t["questions"], len(t["questions"]))) for t in topics}
    composer = Composer(topics, rng, lambda topic: next(decks[topic["id"]]))
    dialogues = []
    for form, count in TRAIN_COUNTS.items():
        order = rng.sample(topics, len(topics))
        for n in range(count):
            round_, place = divmod(n, len(order))
            dialogues.append(composer.dialogue(form, order[place], distract=(round_ + place) % 5 == 0))
    rng.shuffle(dialogues)
    return dialogues


def test_dialogues(topics: list[Topic], rng: random.Random) -> list[Dialogue]:
    """Return one dialogue for each test question; every topic once in each of `TEST_FORMS`."""
    composer = Composer(topics, rng, lambda topic: rng.choice(topic["test_questions"]))
    dialogues = []
    for n, topic in enumerate(topics):
        for k, question in enumerate(topic["test_questions"]):
            form = TEST_FORMS[(n + k) % len(TEST_FORMS)]
            dialogues.append(composer.dialogue(form, topic, question, distract=n % 5 == 0))
    rng.shuffle(dialogues)
    return dialogues


def write_lines(path: Path, rows: Iterable[object]) -> None:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write the three files next to this script."""
    lines = (HERE / "topics.jsonl").read_text(encoding="utf-8").splitlines()
    topics: list[Topic] = [json.loads(line) for line in lines]
    rng = random.Random(SEED)
    write_lines(HERE / "train.jsonl", ({"messages": d} for d in train_dialogues(topics, rng)))
    # Drawn on its own: what training is made of must not change what it is measured on.
    write_lines(HERE / "test.jsonl", ({"messages": d} for d in test_dialogues(topics, random.Random(SEED))))
    articles = [{"id": t["id"], "title": t["title"], "text": t["article"]} for t in topics if t["article"]]
    write_lines(HERE / "articles.jsonl", articles)


if __name__ == "__main__":
    main()
