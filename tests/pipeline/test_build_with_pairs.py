"""`millis build --eval-data` with pairs of texts: embeddings and cross-encoders are measured as people judged them."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertForSequenceClassification, PreTrainedTokenizerFast

from millis_pipeline import build
from millis_server.manifest_files import read_manifest
from tests import tiny
from tests.publishing import publish_all

FIRST, OTHERS = tiny.SENTENCES[0], tiny.SENTENCES[1:]
SWAPPED = [1.0, 2.0, 4.0, 3.0, 5.0]
"""Scores of pairs in the order of their cosines: a correlation of 1 - 6 * 2 / (5 * 24)."""


def write(path: Path, *rows: tuple[object, ...]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def options(folder: Path) -> list[str]:
    return ["--repository", str(folder / "repository"), "--reports", str(folder / "reports")]


def quality(folder: Path, variant: str) -> dict[str, object]:
    measured = read_manifest(folder / "repository" / variant / "1").quality
    assert measured is not None
    return measured.model_dump()


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sentence_model(tmp_path_factory.mktemp("checkpoints") / "embed")


@pytest.fixture(scope="module")
def by_cosine(embedder: Path) -> list[str]:
    """The other sentences, the one least like the first first."""
    vectors = SentenceTransformer(str(embedder), device="cpu").encode([FIRST, *OTHERS], show_progress_bar=False)
    return [OTHERS[index] for index in np.argsort(vectors[1:] @ vectors[0])]


@pytest.fixture
def rankings(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A cross-encoder, and two queries whose answers PyTorch puts first and second."""
    folder = tiny.cross_encoder(tmp_path / "rerank")
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    rows: list[tuple[object, ...]] = [("query", "document", "relevance")]
    for query, answer in (("where is my order", 1), ("shares", 2)):
        with torch.inference_mode():
            logits = model(**tokenizer([query] * 5, list(OTHERS), padding=True, return_tensors="pt")).logits[:, 0]
        order = np.argsort(-logits.numpy())
        rows += [(query, OTHERS[index], int(place == answer)) for place, index in enumerate(order, 1)]
    return folder, write(tmp_path / "faq.csv", *rows)


def test_vectors_are_measured_by_how_their_cosines_follow_peoples_scores(
    tmp_path: Path, embedder: Path, by_cosine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(FIRST, other, score) for other, score in zip(by_cosine, SWAPPED, strict=True)]
    data = write(tmp_path / "sts.csv", ("sentence1", "sentence2", "score"), *pairs)
    assert publish_all(str(embedder), "--eval-data", data, *options(tmp_path)) == 0
    assert quality(tmp_path, "embed-fp32") == {
        "metric": "spearman",
        "value": pytest.approx(0.9),
        "low": 0.0,
        "high": pytest.approx(0.9961, abs=1e-4),
        "examples": 5,
        "dataset": "sts.csv",
    }
    lines = (tmp_path / "reports" / "embed.md").read_text().splitlines()
    # The lower end is below 0 with so few pairs; the report tells it as it is.
    assert "| PyTorch | | 0.9000 (-0.1689 to 0.9961) | | | | | | |" in lines
    assert "Measured on 5 pairs of sts.csv." in lines
    assert "spearman 0.9000 (95 % interval -0.1689 to 0.9961)" in capsys.readouterr().out.splitlines()


def test_vectors_are_measured_by_the_place_of_the_answer_too(
    tmp_path: Path, embedder: Path, by_cosine: list[str]
) -> None:
    rows = [(FIRST, document, int(place == 3)) for place, document in enumerate(by_cosine)]
    data = write(tmp_path / "faq.csv", ("query", "document", "relevance"), *rows)
    assert publish_all(str(embedder), "--eval-data", data, *options(tmp_path)) == 0
    assert quality(tmp_path, "embed-fp32") == {
        "metric": "mrr",
        "value": 0.5,
        "low": 0.5,
        "high": 0.5,
        "examples": 1,
        "dataset": "faq.csv",
    }


def test_a_cross_encoder_is_measured_by_the_place_of_the_answer(tmp_path: Path, rankings: tuple[Path, str]) -> None:
    folder, data = rankings
    assert publish_all(str(folder), "--task", "cross-encoder", "--eval-data", data, *options(tmp_path)) == 0
    assert quality(tmp_path, "rerank-fp32") == {
        "metric": "mrr",
        "value": 0.75,
        "low": 0.5,
        "high": 1.0,
        "examples": 2,
        "dataset": "faq.csv",
    }
    lines = (tmp_path / "reports" / "rerank.md").read_text().splitlines()
    assert "Measured on 2 queries of faq.csv." in lines


def test_scores_that_fall_where_cosines_rise_are_refused_before_a_variant_is_made(
    tmp_path: Path, embedder: Path, by_cosine: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(FIRST, other, -score) for other, score in zip(by_cosine, SWAPPED, strict=True)]
    data = write(tmp_path / "distances.csv", ("sentence1", "sentence2", "score"), *pairs)
    assert build.main([str(embedder), "--eval-data", data, *options(tmp_path)]) == 1
    said = (
        f"millis build: --eval-data: {data}: the cosines of {embedder} do not rise with the scores (Spearman -0.9000, "
        "5 pairs); a higher score must mean that two texts are more alike\n"
    )
    assert capsys.readouterr() == ("", said)
    assert list((tmp_path / "repository").iterdir()) == []


def test_a_query_that_leaves_no_room_for_a_document_is_named_with_its_line(
    tmp_path: Path, rankings: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = rankings
    rows = [("query", "document", "relevance"), ("a", "b", 1), ("a", "c", 0)]
    rows += [("fox " * 61, "b", 1), ("fox " * 61, "c", 0)]
    data = write(tmp_path / "long.csv", *rows)
    assert build.main([str(folder), "--task", "cross-encoder", "--eval-data", data, *options(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"millis build: --eval-data: {data}:4: the query has 61 tokens; with 3 special ones and at least 1 of a "
        f"document the limit of {folder} is 64\n"
    )


def test_without_data_what_is_not_faster_is_refused_and_the_report_says_what_was_seen(
    tmp_path: Path, embedder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_pipeline.gate.FASTER", 0.0)  # nothing is fast enough
    assert build.main([str(embedder), *options(tmp_path)]) == 0
    assert [folder.name for folder in (tmp_path / "repository").iterdir()] == ["embed-fp32"]
    lines = (tmp_path / "reports" / "embed.md").read_text().splitlines()
    (refused,) = (line for line in lines if line.startswith("| int8 |"))
    assert refused.split(" | ")[1:3] == ["refused", "not measured"]
    assert refused.split(" | ")[3].endswith(" on 6 built-in texts")
    (why,) = (line for line in lines if line.startswith("- int8: it is not faster ("))
    assert why.endswith("which agrees with PyTorch at least as much.")
    said = [line for line in capsys.readouterr().out.splitlines() if "quality not measured, agreement " in line]
    assert [line.split(":")[1].split()[0] for line in said] == ["published", "did"]
    assert all(" on 6 built-in texts, " in line for line in said)
