import pytest

from millis_server.words import given_words, split_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Where's my_order #42?", ["Where", "'", "s", "my_order", "#", "42", "?"]),
        ("我在北京", ["我", "在", "北", "京"]),
        ("用iPhone15拍", ["用", "iPhone15", "拍"]),
        ("cafe\u0301 nai\u0308ve", ["cafe\u0301", "nai\u0308ve"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ok 😀👍", ["ok", "😀", "👍"]),
        (" \t\n", []),
    ],
)
def test_words_are_runs_of_letters_and_single_other_characters(text, words):
    found = split_words(text)
    assert [text[start:end] for start, end in found.spans] == words
    assert [found.at[start] for start, _ in found.spans] == list(range(len(words)))
    assert {found.at[i] for i, char in enumerate(text) if char.isspace()} <= {-1}


def test_given_words_are_joined_with_one_space():
    text, words = given_words(["Tim", "Cook", "😀"])
    assert (text, words.spans) == ("Tim Cook 😀", [(0, 3), (4, 8), (9, 10)])
    assert words.at == [0, 0, 0, -1, 1, 1, 1, 1, -1, 2]
