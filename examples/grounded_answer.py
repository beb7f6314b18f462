"""An answer out of a shop's help articles, with its sources, as it is written. Needs a running gateway:

make serve MODELS="embed assistant"
.venv/bin/python examples/grounded_answer.py "Can I send a lamp back?"
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import millis

ARTICLES = Path(__file__).parent.parent / "pipeline" / "recipes" / "assistant" / "articles.jsonl"


@dataclass(frozen=True)
class Source:
    """An article, and how near it is to the question."""

    title: str
    text: str
    score: float


def main(argv: Sequence[str] | None = None) -> int:
    """Finds the best articles, lets the model answer from them, and says which they were."""
    parser = argparse.ArgumentParser(description="Answers a question from help articles.")
    parser.add_argument("question")
    parser.add_argument("--target", help="host:port of the gateway (default: MILLIS_TARGET, or 127.0.0.1:50051)")
    parser.add_argument("--articles", type=Path, default=ARTICLES, help="JSONL with a title and a text on each line")
    parser.add_argument("--top", type=int, choices=(1, 2), default=1, help="articles to answer from (default: 1)")
    options = parser.parse_args(argv)
    try:
        with millis.Client(options.target) as client:
            sources = find(client, options.question, options.articles, options.top)
            seconds = answer(client, options.question, sources)
    except (millis.StatusError, OSError) as error:
        print(f"grounded_answer: {error}", file=sys.stderr)
        return 1
    for source in sources:
        print(f"source: {source.title} ({source.score:.2f})")
    print(f"first token after {seconds * 1000:.0f} ms")
    return 0


def find(client: millis.Client, question: str, path: Path, top: int) -> list[Source]:
    """The articles that are nearest to a question, best first."""
    articles = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    texts = [f"{article['title']}: {article['text']}" for article in articles]
    return [
        Source(articles[best.index]["title"], articles[best.index]["text"], best.score)
        for best in client.rank(question, texts, model="embed", top_k=top)
    ]


def answer(client: millis.Client, question: str, sources: Sequence[Source]) -> float:
    """Prints the answer as it comes, and returns the seconds until its first token."""
    # The model was trained on this form, and knows no other.
    articles = "\n\n".join(f"{source.title}: {source.text}" for source in sources)
    chat = [millis.Message("system", f"Answer from this text.\n\n{articles}"), millis.Message("user", question)]
    first = 0.0
    began = perf_counter()
    with client.generate(chat, model="assistant") as stream:
        for delta in stream:
            first = first or perf_counter() - began
            print(delta.text, end="", flush=True)
    print("\n")
    return first


if __name__ == "__main__":
    sys.exit(main())
