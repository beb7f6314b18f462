"""Pairs of texts to measure on: what a file is taken for, and what is refused with its line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from millis_pipeline.data import DataError
from millis_pipeline.pairs import ALIKE, RANKED, Columns, PairExamples, columns_of, read_pairs

STS = 'score\tsentence1\tsentence2\n3.60\tA "big cat.\tA cat.\n\n0\tA dog.\tA bus.\n5\ta\tb\n1\tc\td\n'
HEAD = "query,document,relevance\n"
SAME = "'sentence1': 'a', 'sentence2': 'b'"
FAQ = f"{HEAD}how,this way,2\nwhere,here,1\nhow,no way,0\nwhere,nowhere,0\n"


def written(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


def test_scored_pairs_are_read_from_tabs_as_they_stand_and_from_json(tmp_path: Path) -> None:
    expected = PairExamples(
        [('A "big cat.', "A cat."), ("A dog.", "A bus."), ("a", "b"), ("c", "d")],
        [3.6, 0.0, 5.0, 1.0],
        [2, 4, 5, 6],
        ranked=False,
        path=tmp_path / "sts.tsv",
    )
    assert read_pairs(written(tmp_path / "sts.tsv", STS), ALIKE) == expected
    rows = [line.split("\t") for line in STS.splitlines()[1:]]
    names = STS.splitlines()[0].split("\t")
    objects = [json.dumps(dict(zip(names, row, strict=True))) if row[0] else "" for row in rows]
    path = written(tmp_path / "sts.jsonl", "\n".join(["", *objects]))
    assert read_pairs(path, ALIKE) == replace(expected, path=path)


def test_documents_of_a_query_need_not_stand_together(tmp_path: Path) -> None:
    assert read_pairs(written(tmp_path / "faq.csv", FAQ), RANKED) == PairExamples(
        [("how", "this way"), ("where", "here"), ("how", "no way"), ("where", "nowhere")],
        [2.0, 1.0, 0.0, 0.0],
        [2, 3, 4, 5],
        ranked=True,
        path=tmp_path / "faq.csv",
    )


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("sentence1,sentence2,score", ALIKE),
        ("relevance,document,query,text2", RANKED),
        ("query,document,score", RANKED),
        ("text,sentence1,sentence2,score", ("text",)),
        ("text,label", ("text",)),
        ("sentence1,sentence2", ALIKE),
    ],
)
def test_a_file_is_taken_for_what_its_columns_say_and_one_with_the_text_column_for_texts(
    tmp_path: Path, header: str, columns: Columns
) -> None:
    path = written(tmp_path / "a.csv", f"{header}\n{header}\n")
    assert columns_of(path, (("text",), ALIKE, RANKED)) == columns


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", STS, ": its name must end in .csv, .tsv or .jsonl"),
        ("a.csv", HEAD, ": it holds no examples"),
        (
            "a.csv",
            "a,b\n1,2\n",
            ":2: columns are: a, b; needed are: text; or sentence1, sentence2, score; or query, document, relevance",
        ),
        (
            "a.csv",
            "query,document,score\na,b,1\n",
            ":2: column 'relevance' is missing; columns are: query, document, score",
        ),
        ("a.csv", f"{HEAD}a,,1\n", ":2: column 'document' is empty or no text"),
        ("a.csv", f"{HEAD}a,b,yes\n", ":2: column 'relevance' is 'yes'; it must be a number of at least 0"),
        ("a.csv", f"{HEAD}a,b,-1\n", ":2: column 'relevance' is '-1'; it must be a number of at least 0"),
        ("a.csv", "sentence1,sentence2,score\na,b,nan\n", ":2: column 'score' is 'nan'; it must be a number"),
        ("a.jsonl", f"{{{SAME}, 'score': true}}".replace("'", '"'), ":1: column 'score' is True; it must be a number"),
        ("a.tsv", STS + "2\tx\n", ":7: 2 columns, the header has 3"),
        (
            "a.csv",
            FAQ + "how,no way,1\n",
            ":6: column 'document' is that of line 4 again, for the same query",
        ),
        (
            "a.csv",
            FAQ + "who,me,1\nwho,you,1\n",
            ":6: column 'relevance' is above 0 for every document of this query; ranking needs documents of both kinds",
        ),
        (
            "a.csv",
            FAQ + "who,me,0\n",
            ":6: column 'relevance' is 0 for every document of this query; ranking needs documents of both kinds",
        ),
        ("a.tsv", STS[: STS.index("1\tc")], ": it holds 3 pairs; a correlation needs at least 4"),
        (
            "a.csv",
            "sentence1,sentence2,score\n" + "a,b,2.5\n" * 4,
            ": column 'score' is 2.5 on every line; a correlation needs different ones",
        ),
    ],
)  # fmt: skip
def test_pairs_that_nothing_can_be_measured_on_are_named_with_file_line_and_column(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_pairs(path, columns_of(path, (("text",), ALIKE, RANKED)))
    assert str(caught.value) == f"{path}{message}"
