import pytest

from millis_server.triton.generation_backend.decoding.detokenize import Detokenizer
from tests.tiny_generation import bytes_tokenizer

TEXT = "café 你好, order 🙂 naïve 🇨🇭 the end"


@pytest.fixture(scope="module")
def tokenizer():
    return bytes_tokenizer().backend_tokenizer


def pieces(tokenizer, text: str, stops=()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(tokenizer, [], stops)
    made = []
    for token in tokenizer.encode(text).ids:
        made.append(detokenizer.take([token]))
        if detokenizer.stopped:
            return made, True
    made.append(detokenizer.end())
    return made, False


def test_characters_of_several_tokens_come_whole(tokenizer):
    assert len(tokenizer.encode("🙂").ids) > 1
    made, _ = pieces(tokenizer, TEXT)
    assert "".join(made) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in made)


def test_half_a_character_at_the_end_is_left_out(tokenizer):
    detokenizer = Detokenizer(tokenizer, [], ())
    made = detokenizer.take(tokenizer.encode("ab🙂").ids[:-1])
    assert made + detokenizer.end() == "ab"


@pytest.mark.parametrize(
    ("stops", "left"),
    [
        (("order",), "café 你好, "),
        (("🙂",), "café 你好, order "),
        (("naïve", "ï"), "café 你好, order 🙂 "),
        (("好, o", "你好, ord"), "café "),
        (("the end",), TEXT.removesuffix("the end")),
        (("the end.",), TEXT),
        (("zzz", "ende"), TEXT),
    ],
)
def test_nothing_of_a_stop_text_is_shown(tokenizer, stops, left):
    made, _ = pieces(tokenizer, TEXT, stops)
    assert "".join(made) == left
    shown = ""
    for piece in made:
        shown += piece
        assert left.startswith(shown)


def test_the_prompt_decides_on_the_space_before_the_first_word(tokenizer):
    prompt, text = tokenizer.encode("where is my").ids, tokenizer.encode(" order").ids
    detokenizer = Detokenizer(tokenizer, prompt, ())
    assert detokenizer.take(text) + detokenizer.end() == " order"
