"""Every inference RPC through SDK, gateway and a real Triton, against the same computation offline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

import millis
from tests.conftest import Published

TEXTS = ["where is my order", "the fox", "Angela Merkel met Tim Cook in Paris", "我在北京", "café 😀 Zürich"]


def logits(published: Published, name: str, *texts: list[str]) -> torch.Tensor:
    """Output of the checkpoint for each input, one by one."""
    folder = published.checkpoints / name
    kind = AutoModelForTokenClassification if name == "ner" else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [model(**tokenizer(*row, return_tensors="pt")).logits[0] for row in zip(*texts, strict=True)]


def test_labels_and_scores_are_those_of_the_checkpoint_in_the_order_of_the_texts(client, published):
    results = client.classify(TEXTS, model="intent", variant="fp32", top_k=0)
    for result, output in zip(results, logits(published, "intent", TEXTS), strict=True):
        expected = torch.softmax(output, -1)
        order = expected.argsort(descending=True).tolist()
        assert [label.name for label in result.labels] == [("cancel", "order", "refund")[i] for i in order]
        assert [label.score for label in result.labels] == pytest.approx(expected[order].tolist(), abs=1e-4)
    assert results.info.served_by == millis.ServedBy("intent", "1", "fp32", False, "pinned by the caller")


def test_a_single_label_model_returns_one_label_unless_asked_for_more(client):
    assert [len(client.classify("where is my order", model="intent", top_k=k).labels) for k in (None, 0, 2)] == [
        1,
        3,
        2,
    ]


def test_min_score_leaves_out_labels_below_it(client):
    whole = client.classify("where is my order", model="intent", top_k=0)
    floor = (whole.labels[0].score + whole.labels[1].score) / 2
    assert client.classify("where is my order", model="intent", top_k=0, min_score=floor).labels == whole.labels[:1]


def test_a_multi_label_model_returns_every_label_above_its_threshold(client, published):
    results = client.classify(TEXTS, model="topics", variant="fp32")
    for result, output in zip(results, logits(published, "topics", TEXTS), strict=True):
        scores = dict(zip(("money", "people", "places", "time"), torch.sigmoid(output).tolist(), strict=True))
        expected = {label: score for label, score in scores.items() if score >= 0.5}
        assert {label.name: label.score for label in result.labels} == pytest.approx(expected, abs=1e-4)


def test_more_texts_than_one_batch_are_answered_in_order(client):
    texts = [f"order {'fox ' * (n % 17)}number {n}" for n in range(300)]
    together = client.classify(texts, model="intent", variant="fp32", top_k=0)
    for index in (0, 1, 16, 17, 128, 299):
        alone = client.classify(texts[index], model="intent", variant="fp32", top_k=0)
        assert [label.name for label in together[index].labels] == [label.name for label in alone.labels]
        assert together[index].labels[0].score == pytest.approx(alone.labels[0].score, abs=1e-4)
    assert together.info.usage.inputs == 300


def test_raw_tokens_are_those_of_the_checkpoint(client, published):
    text = "Angela Merkel met Tim Cook in Paris"
    (output,) = logits(published, "ner", [text])
    expected = torch.softmax(output[1:-1], -1)
    result = client.tag(text, variant="fp32", include_tokens=True)
    tags = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert [token.label for token in result.tokens] == [tags[index] for index in expected.argmax(-1)]
    assert [token.score for token in result.tokens] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-4)
    assert [text[token.span.start : token.span.end] for token in result.tokens] == [
        token.text.removeprefix("##") for token in result.tokens
    ]


@pytest.mark.parametrize("aggregation", ["first", "average", "max", "simple", "none"])
@pytest.mark.parametrize(
    ("unit", "encode", "size"),
    [
        ("code_point", str, 1),
        ("utf8_byte", lambda text: text.encode(), 1),
        ("utf16_code_unit", lambda text: text.encode("utf-16-le"), 2),
    ],
)
def test_entities_cut_from_the_text_in_the_unit_asked_for_are_their_text(client, aggregation, unit, encode, size):
    texts = ["😀👩‍👩‍👧 Tim Cook in Zürich", "我在北京见到了Tim Cook。", "cafe\u0301 in Paris, nai\u0308ve", *TEXTS]
    results = client.tag(texts, variant="fp32", offset_unit=unit, aggregation=aggregation)
    assert sum(len(result.entities) for result in results) > len(texts)
    for text, result in zip(texts, results, strict=True):
        for entity in result.entities:
            assert entity.span.unit == unit
            assert encode(text)[size * entity.span.start : size * entity.span.end] == encode(entity.text)


def test_entities_of_given_words_carry_word_indices(client):
    words = ["Tim", "Cook", "met", "Angela", "Merkel", "in", "Paris"]
    result = client.tag(words=words, variant="fp32")
    assert result.entities
    for entity in result.entities:
        assert entity.text == " ".join(words[entity.first_word : entity.last_word + 1])
        assert " ".join(words)[entity.span.start : entity.span.end] == entity.text


def test_a_long_text_takes_each_token_from_the_window_with_most_context(client, published):
    words = (" ".join(TEXTS[:3]) + " ") * 12
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoints / "ner")
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    capacity, overlap = 62, 20
    starts = [*range(0, len(ids) - capacity, capacity - overlap), len(ids) - capacity]
    model = AutoModelForTokenClassification.from_pretrained(published.checkpoints / "ner").eval()
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    with torch.inference_mode():
        outputs = [
            model(input_ids=torch.tensor([[cls, *ids[start : start + capacity], sep]])).logits[0, 1:-1]
            for start in starts
        ]
    expected = []
    for token in range(len(ids)):

        def margin(window: int, token: int = token) -> float:
            before = token - starts[window] if starts[window] > 0 else float("inf")
            after = starts[window] + capacity - 1 - token if window < len(starts) - 1 else float("inf")
            return min(before, after)

        covering = [w for w, start in enumerate(starts) if start <= token < start + capacity]
        best = max(covering, key=margin)
        expected.append(int(outputs[best][token - starts[best]].argmax()))
    result = client.tag(words, variant="fp32", include_tokens=True, window_overlap=overlap)
    tags = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")
    assert result.windows == len(starts)
    assert [token.label for token in result.tokens] == [tags[index] for index in expected]


def test_vectors_are_those_of_sentence_transformers(client, published):
    model = SentenceTransformer(str(published.checkpoints / "embed"), device="cpu")
    expected = model.encode(TEXTS)
    results = client.embed(TEXTS, variant="fp32")
    assert np.array([result.values for result in results]) == pytest.approx(expected, abs=1e-4)


def test_vectors_are_packed_as_asked(client):
    whole = client.embed(TEXTS[0], variant="fp32").numpy()
    half = client.embed(TEXTS[0], variant="fp32", encoding="float16").numpy()
    bytes_ = client.embed(TEXTS[0], variant="fp32", encoding="int8").numpy()
    bits = client.embed(TEXTS[0], variant="fp32", encoding="binary").numpy()
    assert half == pytest.approx(whole, abs=1e-3)
    assert bytes_ == pytest.approx(whole, abs=float(np.abs(whole).max()) / 127)
    assert bits.astype(bool).tolist() == (whole > 0).tolist()


def test_fewer_dimensions_are_the_first_ones_scaled_to_length_one(client):
    whole = client.embed(TEXTS[0], variant="fp32").numpy()
    short = client.embed(TEXTS[0], variant="fp32", dimensions=8).numpy()
    assert short == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-5)


def test_a_cross_encoder_is_preferred_and_scores_pairs_as_the_checkpoint_does(client, published):
    ranking = client.rank("where is my order", TEXTS, variant="fp32")
    scores = [torch.sigmoid(output[0]).item() for output in logits(published, "rerank", [TEXTS[0]] * 5, TEXTS)]
    order = sorted(range(5), key=lambda index: -scores[index])
    assert ranking.score_type == "probability"
    assert [ranked.index for ranked in ranking] == order
    assert [ranked.score for ranked in ranking] == pytest.approx([scores[index] for index in order], abs=1e-4)


def test_an_embedding_model_ranks_by_cosine(client, published):
    model = SentenceTransformer(str(published.checkpoints / "embed"), device="cpu")
    query, *documents = model.encode(["my order", *TEXTS])
    scores = [float(query @ document) for document in documents]
    order = sorted(range(5), key=lambda index: -scores[index])[:3]
    ranking = client.rank("my order", TEXTS, model="embed", variant="fp32", top_k=3)
    assert ranking.score_type == "cosine"
    assert [(ranked.index, ranked.text) for ranked in ranking] == [(index, TEXTS[index]) for index in order]
    assert [ranked.score for ranked in ranking] == pytest.approx([scores[index] for index in order], abs=1e-4)


def test_tokenize_shows_ids_pieces_and_places(client, published):
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoints / "intent")
    text = "Zürich order"
    expected = tokenizer(text, return_offsets_mapping=True)
    result = client.tokenize(text, model="intent")
    assert [token.id for token in result.tokens] == expected["input_ids"]
    assert [token.text for token in result.tokens] == tokenizer.convert_ids_to_tokens(expected["input_ids"])
    assert [(token.span.start, token.span.end) for token in result.tokens] == expected["offset_mapping"]
    assert [token.special for token in result.tokens] == [True, *[False] * (len(result.tokens) - 2), True]


@pytest.mark.parametrize(("truncation", "kept"), [("end", slice(0, 62)), ("start", slice(-62, None))])
def test_long_texts_are_cut_where_asked_and_named(client, published, truncation, kept):
    text = " ".join(f"{word} {n}" for n in range(40) for word in ("order", "fox"))
    tokenizer = AutoTokenizer.from_pretrained(published.checkpoints / "intent")
    model = AutoModelForSequenceClassification.from_pretrained(published.checkpoints / "intent").eval()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][kept]
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])).logits[0]
    results = client.classify(["fox", text], model="intent", variant="fp32", truncation=truncation, top_k=0)
    expected = sorted(torch.softmax(output, -1).tolist(), reverse=True)
    assert [label.score for label in results[1].labels] == pytest.approx(expected, abs=1e-4)
    assert list(results.info.truncated_inputs) == [1]


def test_timing_adds_up_and_comes_only_when_asked(client):
    assert client.embed("fox").info.timing is None
    timing = client.embed("fox", include_timing=True).info.timing
    parts = timing.tokenize_ms + timing.queue_ms + timing.infer_ms + timing.postprocess_ms
    assert 0 < parts <= timing.total_ms * 1.001
    assert client.embed("fox", client_request_id="my id").info.client_request_id == "my id"
