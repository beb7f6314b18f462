"""Turns a conversation into a prompt, by the Jinja template that a checkpoint brings along.

The template comes from whoever made the checkpoint, so it runs in Jinja's sandbox, as in Hugging Face transformers,
whose names it may use: `messages`, `add_generation_prompt`, special tokens, `raise_exception` and `strftime_now`, and
whose tag `generation`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_PROMPT_CHARACTERS = 4 * 1024 * 1024
"""A template that makes more of a conversation is broken, or means harm."""


class TemplateFailed(ValueError):
    """The template refuses the conversation, or is broken."""


class _Generation(Extension):
    """`{% generation %}` marks what the assistant says, for training. For a prompt its content is all that matters."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        # Names that are set inside end there, as in transformers.
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatTemplates:
    """Compiles templates once and renders them."""

    def __init__(self) -> None:
        self._environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        self._environment.filters["tojson"] = _to_json
        self._environment.globals["raise_exception"] = _refuse
        self._environment.globals["strftime_now"] = _now
        self._compiled = lru_cache(maxsize=64)(self._compile)

    def render(self, template: str, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
        """The prompt of a conversation, up to where the model's answer begins.

        Raises:
            TemplateFailed: the template refuses these messages or cannot be run; the message is one line.
        """
        try:
            parts: list[str] = []
            size = 0
            for part in self._compiled(template).generate(
                messages=messages, add_generation_prompt=True, **special_tokens
            ):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT_CHARACTERS:
                    raise TemplateFailed(f"it makes more than {MAX_PROMPT_CHARACTERS} characters of them")
        except Exception as error:  # a template is somebody's program, and whatever it raises is about it
            raise TemplateFailed(" ".join(str(error).split())[:300] or type(error).__name__) from error
        return "".join(parts)

    def _compile(self, template: str) -> Template:
        return self._environment.from_string(template)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own filter writes HTML escapes, which no prompt wants."""
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
