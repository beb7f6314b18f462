"""Writes a checkpoint's tokenizer as the one file that the gateway reads."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast


def write_tokenizer(tokenizer: PreTrainedTokenizerFast, path: Path) -> Tokenizer:
    """Writes `tokenizer.json` without padding and truncation, which are the gateway's to decide.

    Checkpoints often carry them: all-MiniLM-L6-v2 pads every text to 128 tokens.

    Args:
        tokenizer: of the checkpoint.
        path: file to write.

    Returns:
        The tokenizer as it was written.
    """
    tokenizer.backend_tokenizer.save(str(path))
    plain = Tokenizer.from_file(str(path))
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(path))
    return plain
