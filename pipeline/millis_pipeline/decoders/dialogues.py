"""Reads what a language model learns from and is measured on: dialogues (.jsonl) and running text (.txt)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millis_pipeline.data import DataError, jsonl_records, numbered_lines

ROLES = ("system", "user", "assistant")
SEPARATOR = "<|endoftext|>"
"""A line of a .txt file that ends one text and begins the next, as in TinyStories (Eldan and Li 2023)."""

Message = dict[str, str]


@dataclass(frozen=True)
class Document:
    """A dialogue, or a text.

    Attributes:
        messages: of a dialogue, in the form that chat templates take; empty for a text.
        text: empty for a dialogue.
    """

    messages: tuple[Message, ...] = ()
    text: str = ""


def read_documents(path: Path) -> list[Document]:
    """Reads dialogues from a .jsonl file, or texts from a .txt file.

    A line of a .jsonl file is `{"messages": [{"role": …, "content": …}, …]}`: perhaps a system message, then users and
    assistants in turn, the assistant last.

    Raises:
        DataError: the file cannot be read, or a line is wrong; the message names it.
    """
    documents = _dialogues(path) if path.suffix == ".jsonl" else _texts(path)
    if not documents:
        raise DataError(f"{path}: it holds no examples")
    return documents


def _dialogues(path: Path) -> list[Document]:
    documents = []
    for line, record in jsonl_records(path):
        where = f"{path}:{line}"
        messages = record.get("messages")
        if not isinstance(messages, list) or not messages:
            raise DataError(f"{where}: 'messages' is missing, or no list of messages")
        checked = tuple(_message(f"{where}: message {number}", message) for number, message in enumerate(messages, 1))
        _check_turns(where, [message["role"] for message in checked])
        documents.append(Document(messages=checked))
    return documents


def _message(where: str, message: Any) -> Message:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        raise DataError(f"{where}: it needs 'role' and 'content', and nothing else")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise DataError(f"{where}: role must be one of {', '.join(ROLES)}, not {role!r}")
    if not isinstance(content, str) or not content.strip():
        raise DataError(f"{where}: content is empty or no text")
    return {"role": role, "content": content}


def _check_turns(where: str, roles: list[str]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    expected = [("user", "assistant")[place % 2] for place in range(len(turns))]
    if turns != expected or len(turns) % 2 or not turns:
        raise DataError(
            f"{where}: roles must be user and assistant in turn, after at most 1 system message and with an assistant "
            f"last, not {', '.join(roles)}"
        )


def _texts(path: Path) -> list[Document]:
    lines: list[list[str]] = [[]]
    for _, text in numbered_lines(path):
        if text.strip() == SEPARATOR:
            lines.append([])
        else:
            lines[-1].append(text)
    texts = ["\n".join(text).strip() for text in lines]
    return [Document(text=text) for text in texts if text]
