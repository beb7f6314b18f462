"""Every call passes here first, where the gateway knows its callers: who is it, and may it still call?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path

from millis_server.access.callers import Caller, CallersError, read_callers
from millis_server.errors import Forbidden, Unauthenticated

LOG = logging.getLogger("millis.access")
HEADER = "authorization"
SCHEME = "bearer"
OPERATORS_ONLY = frozenset({"LoadModel", "UnloadModel"})
"""RPCs that change what others are answered."""

_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller | None:
    """Who makes the call that is under way; None where the gateway does not ask."""
    return _CALLER.get()


class Guard:
    """Knows the callers of a file, and follows its changes.

    Args:
        path: of the file, see callers.py.

    Raises:
        CallersError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = _stamp(path)
        self._callers = read_callers(path)

    @property
    def callers(self) -> list[Caller]:
        """All of them."""
        return list(self._callers.values())

    def admit(self, rpc: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Lets a call in, for the account of the caller whose key it brings.

        Args:
            rpc: name of the method.
            metadata: of the call.

        Raises:
            Unauthenticated: there is no key, or nobody has it.
            Forbidden: only an operator may do that.
            QuotaExceeded: the caller has used up what it may use.
        """
        found = self._callers.get(sha256(_key(metadata)).digest())
        if found is None:
            raise Unauthenticated("the key is not that of any caller")
        if rpc in OPERATORS_ONLY and not found.operator:
            raise Forbidden(f"caller {found.name!r} may not call {rpc}; only operators may")
        found.admit()
        _CALLER.set(found)

    async def follow(self, seconds: float) -> None:
        """Reads the file anew whenever it has changed; one that cannot be used changes nothing.

        Args:
            seconds: between two looks.
        """
        while True:
            await asyncio.sleep(seconds)
            await self.look()

    async def look(self) -> None:
        """Reads the file anew if it has changed."""
        stamp = await asyncio.to_thread(_stamp, self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            callers = await asyncio.to_thread(read_callers, self._path)
        except CallersError as error:
            LOG.error("%s; the callers stay those that were read before", error)
            return
        before = {known.name: known for known in self.callers}
        for found in callers.values():
            if (known := before.get(found.name)) is not None:
                found.go_on_from(known)
        self._callers = callers
        LOG.info("%s: read anew, %d callers", self._path, len(callers))


def _key(metadata: Iterable[tuple[str, str | bytes]]) -> bytes:
    for name, value in metadata:
        if name == HEADER:
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, key = text.partition(" ")
            if scheme.lower() != SCHEME or not key:
                raise Unauthenticated(f"{HEADER} is not of the form `Bearer KEY`")
            return key.strip().encode()
    raise Unauthenticated(f"the call brings no key; send it as metadata, `{HEADER}: Bearer KEY`")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a changed file from the one before; None when it is gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino
