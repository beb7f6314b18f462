"""Turns a model of llama2.c into a checkpoint folder.

The files are those of https://github.com/karpathy/llama2.c: `model.bin` in its first format ("v0", fp32), and the
tokenizer file that goes with it. The folder can then be built like any other:

    python -m millis_pipeline.decoders.llama2c stories260K.bin tok512.bin stories260K
    millis build stories260K --task text-generation
"""

from __future__ import annotations

import argparse
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from millis_pipeline.checkpoint import CheckpointError

UNKNOWN, BOS, EOS = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
FIRST_WORD = 259
"""Before it stand the special tokens and one for each byte."""

HEADER = struct.Struct("<7i")
NORM_EPSILON = 1e-5
ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Header:
    """The first 28 bytes of a model; the names are llama2.c's."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool

    @property
    def head_size(self) -> int:
        """Numbers of one head."""
        return self.dim // self.n_heads


def read_model(path: Path) -> LlamaForCausalLM:
    """Reads a model.

    Raises:
        CheckpointError: the file cannot be read, or is none of llama2.c's.
    """
    content = _content(path)
    header = _header(path, content)
    config = LlamaConfig(
        vocab_size=header.vocab_size,
        hidden_size=header.dim,
        intermediate_size=header.hidden_dim,
        num_hidden_layers=header.n_layers,
        num_attention_heads=header.n_heads,
        num_key_value_heads=header.n_kv_heads,
        max_position_embeddings=header.seq_len,
        rms_norm_eps=NORM_EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=header.shared,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(_weights(path, content, header), strict=not header.shared)
    model.tie_weights()
    # Models of llama2.c separate texts by the token that begins one: its own loop stops there too.
    model.generation_config = GenerationConfig(bos_token_id=BOS, eos_token_id=[EOS, BOS])
    return model.eval()


def read_tokenizer(path: Path, vocabulary: int, context: int) -> PreTrainedTokenizerFast:
    """Reads a tokenizer; the result cuts texts as llama2.c does: a space first, merges by score, bytes for the rest.

    Args:
        path: of the file.
        vocabulary: tokens of the model.
        context: most tokens that the model reads.

    Raises:
        CheckpointError: the file cannot be read, or ends too early.
    """
    pieces = _pieces(path, vocabulary)
    numbers = {text: number for number, (text, _) in enumerate(pieces)}
    words = range(FIRST_WORD, len(pieces))
    merges = []
    # llama2.c joins the two neighbours whose union has the highest score: here the earliest in the list.
    for number in sorted(words, key=lambda word: -pieces[word][1]):
        text = pieces[number][0]
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        merges += [(left, right) for left, right in halves if left in numbers and right in numbers]
    tokenizer = Tokenizer(models.BPE(numbers, merges, unk_token=SPECIAL[UNKNOWN], byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BOS]} $A", special_tokens=[(SPECIAL[BOS], BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=SPECIAL[UNKNOWN],
        bos_token=SPECIAL[BOS],
        eos_token=SPECIAL[EOS],
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def convert_llama2c(model: Path, tokenizer: Path, folder: Path) -> None:
    """Writes a checkpoint folder of transformers.

    Args:
        model: file with the weights.
        tokenizer: file with the tokens.
        folder: to write.

    Raises:
        CheckpointError: a file cannot be read, or is none of llama2.c's.
    """
    read = read_model(model)
    tokens = read_tokenizer(tokenizer, read.config.vocab_size, read.config.max_position_embeddings)
    read.save_pretrained(folder)
    tokens.save_pretrained(folder)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _header(path: Path, content: bytes) -> Header:
    if len(content) < HEADER.size:
        raise CheckpointError(f"{path}: {len(content)} bytes are no model of llama2.c")
    *sizes, vocabulary, length = HEADER.unpack_from(content)
    if min(*sizes, length) < 1 or vocabulary == 0 or sizes[0] % sizes[3] or sizes[3] % sizes[4]:
        raise CheckpointError(f"{path}: its first 28 bytes are no header of llama2.c's first format (v0)")
    dim, hidden, layers, heads, kv_heads = sizes
    return Header(dim, hidden, layers, heads, kv_heads, abs(vocabulary), length, shared=vocabulary > 0)


def _weights(path: Path, content: bytes, header: Header) -> dict[str, torch.Tensor]:
    numbers = np.frombuffer(content, "<f4", offset=HEADER.size, count=(len(content) - HEADER.size) // 4)
    place = 0

    def take(*shape: int) -> NDArray[np.float32]:
        nonlocal place
        count = int(np.prod(shape))
        if place + count > len(numbers):
            raise CheckpointError(f"{path}: it ends after {len(content)} bytes, in the middle of the weights")
        found = numbers[place : place + count].reshape(shape)
        place += count
        return found

    layers, dim, hidden = header.n_layers, header.dim, header.hidden_dim
    queries, keys = header.n_heads * header.head_size, header.n_kv_heads * header.head_size
    embeddings = take(header.vocab_size, dim)
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": _halves(take(layers, queries, dim), header.n_heads),
        "self_attn.k_proj": _halves(take(layers, keys, dim), header.n_kv_heads),
        "self_attn.v_proj": take(layers, keys, dim),
        "self_attn.o_proj": take(layers, dim, queries),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    norm = take(dim)
    take(header.seq_len, header.head_size)  # sines and cosines of the positions, which transformers computes
    found = {"model.embed_tokens.weight": embeddings, "model.norm.weight": norm}
    if not header.shared:
        found["lm_head.weight"] = take(header.vocab_size, dim)
    if place != len(numbers):
        raise CheckpointError(
            f"{path}: {4 * (len(numbers) - place)} bytes follow the weights that its header announces"
        )
    for name, rows in stacked.items():
        found |= {f"model.layers.{layer}.{name}.weight": rows[layer] for layer in range(layers)}
    return {name: torch.from_numpy(values.copy()) for name, values in found.items()}


def _halves(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Puts the rows of each head in the order that transformers rotates.

    llama2.c turns neighbours, (0, 1), (2, 3), …, by a position's angles; transformers turns the first half against the
    second (Su et al. 2021, "RoFormer", in both orders).
    """
    layers, _, dim = rows.shape
    return rows.reshape(layers, heads, -1, 2, dim).swapaxes(2, 3).reshape(rows.shape)


def _pieces(path: Path, vocabulary: int) -> list[tuple[str, float]]:
    """Text and score of each token."""
    content = _content(path)
    place = 4  # length of the longest token, which nobody needs here
    pieces: list[tuple[str, float]] = []
    for number in range(vocabulary):
        if place + 8 > len(content):
            raise CheckpointError(f"{path}: it ends after {number} tokens, the model has {vocabulary}")
        score, length = struct.unpack_from("<fi", content, place)
        place += 8
        text = content[place : place + length].decode("utf-8", "replace")
        place += length
        if number < len(SPECIAL):
            text = SPECIAL[number]
        elif number < FIRST_WORD:
            text = f"<0x{number - len(SPECIAL):02X}>"
        pieces.append((text, score))
    return pieces


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m millis_pipeline.decoders.llama2c", description=__doc__)
    parser.add_argument("model", type=Path, help="weights, for example stories260K.bin")
    parser.add_argument("tokenizer", type=Path, help="tokens, for example tok512.bin")
    parser.add_argument("folder", type=Path, help="checkpoint folder to write")
    arguments = parser.parse_args()
    try:
        convert_llama2c(arguments.model, arguments.tokenizer, arguments.folder)
    except CheckpointError as error:
        print(f"llama2c: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(_main())
