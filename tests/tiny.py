"""Tiny checkpoints of real architectures with random weights, and a tokenizer trained on a few sentences."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)

SENTENCES = (
    "where is my order it should have arrived last week",
    "the quick brown fox jumps over the lazy dog",
    "Angela Merkel met Tim Cook in Paris on Monday",
    "我在北京见到了你",
    "café naïve Zürich résumé",
    "shares of the company rose after it raised its forecast",
)
MAX_TOKENS = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
INTENTS = ("cancel", "order", "refund")
TOPICS = ("money", "people", "places", "time")
TAGS = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def wordpiece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like BERT's, cased."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def bert_config(labels: tuple[str, ...], seed: int = 0, **changes: object) -> BertConfig:
    """Two layers of width 32, with weights large enough that answers differ from text to text."""
    set_seed(seed)
    values: dict[str, object] = {
        "vocab_size": len(wordpiece_tokenizer()),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": MAX_TOKENS,
        "initializer_range": 0.4,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    return BertConfig(**(values | changes))


def backbone(folder: Path, layers: int = 2) -> Path:
    """Writes a headless BERT to fine-tune: weights small enough to learn from, and no dropout in so narrow a model."""
    changes: dict[str, object] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    changes |= {"initializer_range": 0.1, "num_hidden_layers": layers}
    BertModel(bert_config(("a", "b"), **changes)).save_pretrained(folder)
    wordpiece_tokenizer().save_pretrained(folder)
    return folder


def text_classifier(folder: Path, labels: tuple[str, ...] = INTENTS, seed: int = 0, multi_label: bool = False) -> Path:
    """Writes a BERT text classifier."""
    kind = "multi_label_classification" if multi_label else "single_label_classification"
    BertForSequenceClassification(bert_config(labels, seed, problem_type=kind)).save_pretrained(folder)
    wordpiece_tokenizer().save_pretrained(folder)
    return folder


def token_classifier(folder: Path) -> Path:
    """Writes a BERT token classifier."""
    BertForTokenClassification(bert_config(TAGS, seed=3)).save_pretrained(folder)
    wordpiece_tokenizer().save_pretrained(folder)
    return folder


def cross_encoder(folder: Path) -> Path:
    """Writes a BERT cross-encoder."""
    BertForSequenceClassification(bert_config(("relevance",), seed=4)).save_pretrained(folder)
    wordpiece_tokenizer().save_pretrained(folder)
    return folder


def sentence_model(folder: Path, *further: nn.Module, **stated: object) -> Path:
    """Writes a sentence-transformers model: BERT, then mean pooling and normalisation, or what is given."""
    backbone = folder.parent / f"{folder.name}-backbone"
    BertModel(bert_config(("a", "b"), seed=5)).save_pretrained(backbone)
    wordpiece_tokenizer().save_pretrained(backbone)
    transformer = Transformer(str(backbone), max_seq_length=MAX_TOKENS)
    torch.manual_seed(0)
    modules = [transformer, *(further or (Pooling(32, "mean"), Normalize()))]
    SentenceTransformer(modules=modules, device="cpu", **stated).save(str(folder))
    return folder
