"""Text generation: what a caller asks for, and the prompt that it becomes for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from millis_server.chat import ChatTemplates, TemplateFailed
from millis_server.errors import InvalidField
from millis_server.manifest import Generation, Manifest, TaskName
from millis_server.tokenizer import Tokenizer

GuideKind = Literal["json", "regex", "choice"]

GUIDE_FIELDS: dict[GuideKind, str] = {"json": "json_schema", "regex": "regex", "choice": "choices"}
"""Field of the request for each kind of guide."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; the defaults are those of the proto."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0


@dataclass(frozen=True, slots=True)
class TextGeneration:
    """One question to a model that generates. Exactly one of `prompt`, `chat` and `ids` is filled."""

    name: ClassVar[str] = "GenerateText"
    answered_by: ClassVar[tuple[TaskName, ...]] = ("text-generation",)

    prompt: str = ""
    chat: Sequence[dict[str, str]] = ()
    """Messages with `role` and `content`."""
    ids: Sequence[int] = ()
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: bool = False
    n: int = 1
    beams: int = 0
    guide: tuple[GuideKind, Any] | None = None
    """Kind and rule: a JSON schema as a value, a regular expression, or a list of choices."""
    ignore_eos: bool = False

    @property
    def characters(self) -> int:
        """Length of the input, the measure of pre-processing."""
        return len(self.prompt) + sum(len(message["content"]) for message in self.chat)

    def prepare(self, manifest: Manifest, tokenizer: Tokenizer, templates: ChatTemplates) -> Prompt:
        """Tokenizes the input and checks that the answer has room.

        Raises:
            InvalidField: the request does not fit the model.
        """
        generation = manifest.generation
        assert generation is not None, "the catalogue gives models that generate. This is a bug."
        if len(self.ids) >= manifest.max_tokens:
            # Before they are looked at one by one: a message has room for millions of them.
            raise _too_long("token_ids.ids", len(self.ids), manifest)
        field_name, text, ids = self._tokenized(generation, tokenizer, templates)
        if self.guide is not None and not generation.guided:
            raise InvalidField(GUIDE_FIELDS[self.guide[0]], "is set, and this model cannot guide its text")
        if not ids:
            raise InvalidField(field_name, "comes to no token, and there is nothing to go on from")
        most = manifest.max_tokens - len(ids)
        if most < 1:
            raise _too_long(field_name, len(ids), manifest)
        if self.max_tokens is not None and self.max_tokens > most:
            raise InvalidField(
                "max_tokens",
                f"is {self.max_tokens}; with {len(ids)} tokens of the prompt the model's limit of "
                f"{manifest.max_tokens} leaves {most}",
            )
        wanted = self.max_tokens or min(generation.default_max_tokens, most)
        width = max(self.n, self.beams)
        if width > generation.max_streams:
            name = "beams" if self.beams else "n"
            raise InvalidField(name, f"is {width}; this model has places for {generation.max_streams}")
        tokens = len(ids) + width * wanted
        if tokens > generation.cache_tokens:
            raise InvalidField(
                "max_tokens",
                f"is {wanted}{f' for {width} texts' if width > 1 else ''}; with {len(ids)} tokens of the prompt that "
                f"makes {tokens}, and the model has memory for {generation.cache_tokens}",
            )
        return Prompt(text, ids, wanted, width, tokens)

    def _tokenized(
        self, generation: Generation, tokenizer: Tokenizer, templates: ChatTemplates
    ) -> tuple[str, str, Sequence[int]]:
        """Field that the caller filled, the prompt's text (empty for ids) and its tokens."""
        if self.ids:
            ids = list(self.ids)
            for index, token in enumerate(ids):
                if token >= generation.vocabulary:
                    raise InvalidField(
                        f"token_ids.ids[{index}]",
                        f"is {token}; this model has ids from 0 to {generation.vocabulary - 1}",
                    )
            return "token_ids.ids", "", ids
        if not self.chat:
            return "prompt", self.prompt, tokenizer.encoding(self.prompt, True).ids
        if not generation.chat_template:
            raise InvalidField("chat", "is filled, and this model has no chat template; use prompt")
        try:
            text = templates.render(generation.chat_template, self.chat, generation.special_tokens)
        except TemplateFailed as error:
            raise InvalidField("chat.messages", f"the model's chat template refuses them: {error}") from error
        # The template writes the special tokens itself.
        return "chat.messages", text, tokenizer.encoding(text, False).ids


def _too_long(name: str, tokens: int, manifest: Manifest) -> InvalidField:
    return InvalidField(name, f"has {tokens} tokens; with at least 1 of the answer the limit is {manifest.max_tokens}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What goes to the engine.

    Attributes:
        text: the prompt; empty when the caller gave ids.
        ids: its tokens.
        max_tokens: most tokens of each text.
        width: places at the engine that it takes.
        tokens: most tokens, of prompt and texts together, for which it needs memory.
    """

    text: str
    ids: Sequence[int]
    max_tokens: int
    width: int
    tokens: int
