"""Trains a tokenizer for a new model, and writes the form of one that the engine needs for guided output."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable
from pathlib import Path

import openvino
from openvino_tokenizers import convert_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""Of models trained from nothing: a special token before each message, and the end-of-text token after an answer."""

ENGINE_FILES = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer of byte pairs (Sennrich et al. 2016) over bytes, which reads any text (Radford et al. 2019).

    Args:
        texts: to learn from.
        vocabulary: most tokens; there are fewer when the texts do not hold so many.
        context: most tokens that the model reads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def write_engine_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    """Writes the tokenizer as OpenVINO graphs, which the engine needs to hold a text to a schema.

    Returns:
        Empty when they are written; else why they cannot be.
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            graphs = convert_tokenizer(tokenizer, with_detokenizer=True)
    except Exception as error:  # the converter raises errors of many kinds
        return " ".join(str(error).split())[:200] or type(error).__name__
    for graph, name in zip(graphs, ENGINE_FILES[::2], strict=True):
        openvino.save_model(graph, folder / name)
    return ""
