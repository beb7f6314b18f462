from __future__ import annotations

import json
from pathlib import Path

import pytest

from millis_pipeline.data import (
    DataError,
    TextExamples,
    TokenExamples,
    check_known,
    label_names,
    read_text_examples,
    read_token_examples,
    to_iob2,
)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_csv_keeps_quotes_line_breaks_and_every_script(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", '\ufefftext,label\n"one, ""two""\nthree",x\n订单在哪里 🚚,y\n')
    assert read_text_examples(path, "text", "label") == TextExamples(
        ['one, "two"\nthree', "订单在哪里 🚚"], [["x"], ["y"]], [3, 4]
    )


def test_csv_with_carriage_returns_reads_like_one_without(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\r\none,x\r\ntwo,y\r\n")
    assert read_text_examples(path, "text", "label") == TextExamples(["one", "two"], [["x"], ["y"]], [2, 3])


def test_columns_may_have_other_names_and_neighbours(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "id,category,query\n7,x,one\n")
    assert read_text_examples(path, "query", "category") == TextExamples(["one"], [["x"]], [2])


def test_texts_without_labels_are_read_when_none_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text\none\n")
    assert read_text_examples(path, "text", None) == TextExamples(["one"], [[]], [2])


def test_a_separator_splits_several_labels_and_allows_none(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "text,label\none,x| y\ntwo,\n")
    assert read_text_examples(path, "text", "label", "|") == TextExamples(["one", "two"], [["x", "y"], []], [2, 3])


def test_jsonl_takes_labels_as_text_number_or_list(tmp_path: Path) -> None:
    rows = [{"text": "one", "label": "x"}, {"text": "two", "label": 3}, {"text": "three", "label": ["x", "y"]}]
    path = written(tmp_path / "a.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    assert read_text_examples(path, "text", "label", "|") == TextExamples(
        ["one", "two", "three"], [["x"], ["3"], ["x", "y"]], [1, 3, 5]
    )


def test_jsonl_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "one\u2028two", "label": "x"}\n')
    assert read_text_examples(path, "text", "label").texts == ["one\u2028two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,category\none,x\n", ":2: column 'label' is missing; columns are: text, category"),
        ("a.csv", "text,label\none,x\n ,y\n", ":3: column 'text' is empty or no text"),
        ("a.csv", "text,label\none,\n", ":2: column 'label' is empty or no text"),
        ("a.csv", "text,label\none\n", ":2: column 'label' is empty or no text"),
        ("a.csv", "text,label\none, two,x\n", ":2: 3 columns, the header has 2; a text with a comma needs quotes"),
        ("a.csv", 'text,label\n"one,x\n', ":2: unexpected end of data"),
        ("a.csv", "text,label\no\0ne,x\n", ":2: column 'text' contains a NUL character at position 1"),
        ("a.csv", b"text,label\none,x\ntw\xff,x\n", ":3: not UTF-8 (byte 0xFF)"),
        ("a.csv", "", ": it holds no examples"),
        ("a.csv", "text,label\n", ": it holds no examples"),
        ("a.tsv", "text\tlabel\n", ": its name must end in .csv or .jsonl"),
        ("a.jsonl", '{"text": "one", "label": "x"}\n{"text"\n', ":2: not JSON: "),
        ("a.jsonl", "[" * 100_000 + "\n", ":1: not JSON: "),
        ("a.jsonl", '["one", "x"]\n', ":1: not a JSON object"),
        ("a.jsonl", '{"text": "one"}\n', ":1: column 'label' is missing; columns are: text"),
        ("a.jsonl", '{"text": 1, "label": "x"}\n', ":1: column 'text' is empty or no text"),
        ("a.jsonl", '{"text": "one", "label": null}\n', ":1: column 'label' is empty or no text"),
        ("a.jsonl", '{"text": "one", "label": {"x": 1}}\n', ":1: column 'label' is empty or no text"),
        (
            "a.jsonl",
            '{"text": "one", "label": ["x", "y"]}\n',
            ":1: column 'label' has 2 labels; without label_separator it needs 1",
        ),
        (
            "a.jsonl",
            '{"text": "a\\ud83d", "label": "x"}\n',
            ":1: column 'text' contains a lone surrogate U+D83D at position 1",
        ),
    ],
)
def test_unusable_texts_are_named_with_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    path = written(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_text_examples(path, "text", "label")
    # What the JSON parser says about its line is its own.
    assert str(caught.value)[: len(f"{path}{message}")] == f"{path}{message}"
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (lambda path: read_text_examples(path, "text", "label"), read_token_examples):
        with pytest.raises(DataError) as caught:
            read(tmp_path / "none.csv")
        assert str(caught.value) == f"{tmp_path / 'none.csv'}: No such file or directory"


def test_conll_columns_are_the_first_and_the_last(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.conll",
        "-DOCSTART- -X- O O\n\nTim NNP - B-PER\nCook NNP - I-PER\n. . O O\n\n\nNew York\tB-LOC\r\n我\tO\n",
    )
    assert read_token_examples(path) == TokenExamples(
        [["Tim", "Cook", "."], ["New York", "我"]], [["B-PER", "I-PER", "O"], ["B-LOC", "O"]], [3, 8]
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-PER I-PER O I-LOC", "B-PER I-PER O B-LOC"),
        ("I-PER I-LOC I-LOC", "B-PER B-LOC I-LOC"),
        ("I-PER B-PER I-PER", "B-PER B-PER I-PER"),
        ("B-PER I-PER O", "B-PER I-PER O"),
    ],
)
def test_iob1_becomes_iob2(tags: str, expected: str) -> None:
    assert to_iob2(tags.split()) == expected.split()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Tim B-PER\nCook\n", ":2: a line needs a word and a tag, this one is 'Cook'"),
        ("Tim\tB-PER\n\tO\n", ":2: a line needs a word and a tag, this one is '\\tO'"),
        ("Tim S-PER\n", ":1: tag 'S-PER' is neither O nor B-… nor I-…"),
        ("Tim B-\n", ":1: tag 'B-' is neither O nor B-… nor I-…"),
        ("Tim O\nC\0ok O\n", ":2: the word contains a NUL character at position 1"),
        (b"Tim O\n\xe4 O\n", ":2: not UTF-8 (byte 0xE4)"),
        ("\n-DOCSTART- O\n\n", ": it holds no examples"),
    ],
)
def test_unusable_tokens_are_named_with_file_and_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = written(tmp_path / "a.conll", content)
    with pytest.raises(DataError) as caught:
        read_token_examples(path)
    assert str(caught.value) == f"{path}{message}"


def test_labels_are_sorted_and_at_least_two() -> None:
    assert label_names([["b"], ["a", "c"], ["b"]], Path("train.csv")) == ("a", "b", "c")
    with pytest.raises(DataError) as caught:
        label_names([["b"], ["b"]], Path("train.csv"))
    assert str(caught.value) == "train.csv: it has 1 label (b); training needs at least 2"


def test_a_label_that_training_lacks_is_named_with_its_line(tmp_path: Path) -> None:
    texts = read_text_examples(written(tmp_path / "a.csv", "text,label\none,x\ntwo,z\n"), "text", "label")
    with pytest.raises(DataError) as caught:
        check_known(texts, ("x", "y"), Path("dev.csv"))
    assert str(caught.value) == "dev.csv:3: label 'z' is not in the training data"
    tokens = read_token_examples(written(tmp_path / "a.conll", "Tim B-PER\n\n\nin O\nRome B-LOC\n"))
    with pytest.raises(DataError) as caught:
        check_known(tokens, ("O", "B-PER", "I-PER"), Path("dev.conll"))
    assert str(caught.value) == "dev.conll:5: label 'B-LOC' is not in the training data"
