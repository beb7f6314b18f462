"""The callers that the gateway knows: a TOML file with a table for each.

[callers.search]
key_sha256 = "9f86d081…"        # of the key; the key itself is nowhere on the server
models = ["intent", "embed"]    # that it may ask; all of them when left out
requests_per_minute = 6000      # no limit when left out
tokens_per_minute = 200000      # of texts, prompts and generated text together
operator = true                 # may load and unload models
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from millis_server.access.quota import Allowance
from millis_server.errors import Forbidden, QuotaExceeded

MAX_NAME_CHARACTERS = 100


class CallersError(ValueError):
    """A file of callers that cannot be used; the message is one line and names file and key."""


class _Entry(BaseModel):
    """One caller as the file has it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    key_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-fA-F]{64}$")]
    models: Annotated[list[str], Field(min_length=1)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = None
    operator: bool = False


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    callers: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS)], _Entry],
        Field(min_length=1),
    ]


@dataclass(slots=True)
class Caller:
    """One who may call.

    Attributes:
        name: in the file, in messages and metrics.
        models: that it may ask; None is all.
        operator: whether it may load and unload models.
        requests: calls that it may make; None is any number.
        tokens: that its calls may take; None is any number.
        calls: made so far.
        refused: of these, for want of quota.
        used: tokens so far.
    """

    name: str
    models: frozenset[str] | None
    operator: bool
    requests: Allowance | None
    tokens: Allowance | None
    calls: int = 0
    refused: int = 0
    used: int = 0

    def admit(self) -> None:
        """Lets a call in and counts it.

        Raises:
            QuotaExceeded: no call, or no token, is left of the allowance.
        """
        self.calls += 1
        if self.requests is not None:
            self._check(self.requests, "requests_per_minute", 1.0)
        if self.tokens is not None:
            self._check(self.tokens, "tokens_per_minute", 0.0)
        if self.requests is not None:
            self.requests.spend(1)

    def spend(self, tokens: int) -> None:
        """Pays for tokens that a call took."""
        self.used += tokens
        if self.tokens is not None:
            self.tokens.spend(tokens)

    def permit(self, model: str) -> None:
        """Checks that it may ask a model.

        Raises:
            Forbidden: it may not.
        """
        if self.models is not None and model not in self.models:
            allowed = ", ".join(sorted(self.models))
            raise Forbidden(f"caller {self.name!r} may not ask model {model!r}; its models are: {allowed}")

    def go_on_from(self, before: Caller) -> None:
        """Takes over what was counted for the same caller before the file was read anew."""
        self.calls, self.refused, self.used = before.calls, before.refused, before.used
        for mine, theirs in ((self.requests, before.requests), (self.tokens, before.tokens)):
            if mine is not None and theirs is not None:
                mine.go_on_from(theirs)

    def _check(self, allowance: Allowance, limit: str, needed: float) -> None:
        seconds = allowance.wait(needed)
        if seconds > 0:
            self.refused += 1
            raise QuotaExceeded(
                f"caller {self.name!r} has used up {limit} ({allowance.per_minute}); more in {seconds:.3g} s",
                retry_after=seconds,
                caller=self.name,
            )


def read_callers(path: Path) -> dict[bytes, Caller]:
    """Reads the file of callers.

    Args:
        path: a TOML file.

    Returns:
        The callers by the SHA-256 digest of their keys.

    Raises:
        CallersError: it cannot be read, says something that it must not, or two callers have one key.
    """
    try:
        entries = _File.model_validate(tomllib.loads(path.read_text())).callers
    except OSError as error:
        raise CallersError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise CallersError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:  # not TOML, not UTF-8
        raise CallersError(f"{path}: not TOML: {error}") from None
    callers: dict[bytes, Caller] = {}
    for name, entry in entries.items():
        digest = bytes.fromhex(entry.key_sha256)
        if digest in callers:
            raise CallersError(f"{path}: callers.{name}.key_sha256: is that of {callers[digest].name} too")
        callers[digest] = _caller(name, entry)
    return callers


def _caller(name: str, entry: _Entry) -> Caller:
    return Caller(
        name=name,
        models=None if entry.models is None else frozenset(entry.models),
        operator=entry.operator,
        requests=None if entry.requests_per_minute is None else Allowance(entry.requests_per_minute),
        tokens=None if entry.tokens_per_minute is None else Allowance(entry.tokens_per_minute),
    )
