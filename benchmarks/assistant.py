"""How often the model `assistant` answers what was asked: test questions alone, with an article, after another topic.

    python -m benchmarks.assistant --repository model_repository

Every test dialogue goes through the service, greedy. An answer counts as right when, of all answers of all topics, the
one that shares most words with it belongs to the topic that was asked about. That says whether the right thing was
said, not how well: the model mostly repeats answers that it has learned.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

import millis
from benchmarks.gateway import running_gateway
from millis_pipeline.evaluate import wilson_interval

RECIPE = Path("pipeline/recipes/assistant")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--model", default="assistant")
    parser.add_argument("--show", type=int, default=0, help="print so many wrong answers")
    arguments = parser.parse_args()
    topics = [json.loads(line) for line in (RECIPE / "topics.jsonl").read_text("utf-8").splitlines()]
    answers = [(words(answer), topic["id"]) for topic in topics for answer in known_answers(topic)]
    dialogues = [json.loads(line)["messages"] for line in (RECIPE / "test.jsonl").read_text("utf-8").splitlines()]
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    wrong = []
    with running_gateway(arguments.repository) as running, millis.Client(running.target) as client:
        for dialogue in tqdm(dialogues, unit="question", leave=False, disable=None):
            *before, reference = dialogue
            chat = [millis.Message(message["role"], message["content"]) for message in before]
            said = client.generate(chat, model=arguments.model).text()
            form = form_of(dialogue)
            asked[form] += 1
            if nearest(said, answers) == nearest(reference["content"], answers):
                right[form] += 1
            else:
                wrong.append((form, before[-1]["content"], said))
    for form, count in sorted(asked.items()):
        low, high = wilson_interval(right[form], count)
        print(f"{form}: {right[form]} of {count} ({100 * low:.0f} to {100 * high:.0f} %)")
    for form, question, said in wrong[: arguments.show]:
        print(f"\n{form}: {question}\n  {said}")


def known_answers(topic: dict[str, object]) -> list[str]:
    """All that may be said of a topic."""
    follow_up = topic["follow_up"]
    assert isinstance(follow_up, dict)
    assert isinstance(topic["answers"], list)
    return [*topic["answers"], *follow_up["answers"]]


def form_of(dialogue: list[dict[str, str]]) -> str:
    """Which kind of dialogue it is."""
    if dialogue[0]["role"] == "system":
        return "with the article"
    return "after another topic" if len(dialogue) > 2 else "alone"


def nearest(said: str, answers: list[tuple[Counter[str], str]]) -> str:
    """Topic of the answer that shares most words with what was said."""
    ours = words(said)

    def shared(theirs: Counter[str]) -> float:
        return 2 * (ours & theirs).total() / max(ours.total() + theirs.total(), 1)

    return max(answers, key=lambda answer: shared(answer[0]))[1]


def words(text: str) -> Counter[str]:
    """Lower-cased words, counted."""
    return Counter(re.findall(r"[a-z0-9]+", text.lower()))


if __name__ == "__main__":
    main()
