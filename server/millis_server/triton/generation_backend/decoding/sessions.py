"""The way back for a gateway: all that one step made, for all of its callers, in one response.

A response of Triton's Python backend costs its sender 0.3 to 1 ms, and more in Triton and in whoever reads it. With
eight texts side by side that is more than a small model's step. So a gateway opens a session, a request that stays
open, and asks for texts in requests that name it; what they come to goes out through the session, by a thread of its
own, while the engine makes the next step.

Inputs: `session` is its name; alone it opens the session. With `number` (INT32) the request is a text to make, under
that number of the gateway's own choice. With `cancel` (INT32) it drops the text of that number, and with a negative one
it ends the session.

Each response is one tensor, `pieces` UINT8, because a tensor costs a fifth of a millisecond. It holds, little-endian:
INT32 k; for each of k pieces seven INT32, the number, which of its texts, how many tokens, log-probabilities and bytes
of text stand below, tokens made, and how it ended (0 goes on, 1 stop, 2 length, 3 an error, whose text stands in place
of the text); then of all pieces the tokens, INT32, the log-probabilities, FP32, and the texts, UTF-8.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .generator import InvalidRequest, Piece
from .responses import FINAL

FINISHES = {"": 0, "stop": 1, "length": 2}
FAILED = 3


class Courier:
    """Sends responses from a thread of its own, in order.

    Most of the time of a send is waiting for Triton to take it, and the interpreter lock is free meanwhile.
    """

    def __init__(self) -> None:
        self._given = threading.Semaphore(0)
        self._taken = threading.Semaphore(0)
        self._job: tuple[Session, Any, int] | None = None
        threading.Thread(target=self._run, name="courier", daemon=True).start()

    def hand(self, session: Session, response: Any, flags: int = 0) -> None:
        """Hands a response over, once the one before is sent.

        Without the wait for its being taken, the caller would begin a step that keeps the interpreter lock, and the
        response would lie here until that is over.
        """
        self._job = session, response, flags
        self._given.release()
        self._taken.acquire()

    def _run(self) -> None:
        while True:
            self._given.acquire()
            assert self._job is not None, "what was given is there. This is a bug."
            session, response, flags = self._job
            self._taken.release()
            session.send(response, flags)


class Session:
    """One session. The engine's thread calls its methods, but for the constructor, `begin`, `cancel` and `send`.

    Args:
        sender: Triton's, of the request that opened it.
        courier: that sends its responses.
    """

    def __init__(self, sender: Any, courier: Courier) -> None:
        self._sender = sender
        self._courier = courier
        self.gone = False
        self._wanted: set[int] = set()
        self._clear()

    def _clear(self) -> None:
        self._pieces: list[int] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._texts: list[bytes] = []

    def add(self, number: int, piece: Piece, text: str) -> None:
        """Keeps a piece for the next response."""
        tokens, logprobs, data = piece.tokens, piece.logprobs, text.encode()
        finish = FINISHES[piece.finish]
        self._pieces += number, piece.sequence, len(tokens), len(logprobs), len(data), piece.made, finish
        self._tokens += tokens
        self._logprobs += logprobs
        self._texts.append(data)

    def fail(self, number: int, error: Exception) -> None:
        """Keeps the end of a text that failed."""
        data = f"{type(error).__name__}: {error}".encode()
        self._pieces += number, 0, 0, 0, len(data), 0, FAILED
        self._texts.append(data)

    def begin(self, number: int) -> None:
        """Notes that a text is wanted."""
        self._wanted.add(number)

    def cancel(self, number: int) -> None:
        """Notes that a text is wanted no more, or with a negative number that none is."""
        if number < 0:
            self.gone = True
        self._wanted.discard(number)

    def wants(self, number: int) -> bool:
        """Whether a text is still wanted."""
        return not self.gone and number in self._wanted

    def flush(self) -> None:
        """Sends what has come together."""
        if not self._pieces or self.gone:
            return
        whole = np.array([len(self._texts), *self._pieces, *self._tokens], np.int32).tobytes()
        if self._logprobs:
            whole += np.array(self._logprobs, np.float32).tobytes()
        whole += b"".join(self._texts)
        self._clear()
        self._courier.hand(
            self, pb_utils.InferenceResponse([pb_utils.Tensor("pieces", np.frombuffer(whole, np.uint8))])
        )

    def look(self) -> bool:
        """Whether the session goes on; one that its gateway has left ends here."""
        if not self.gone and self._sender.is_cancelled():
            self.gone = True
        if self.gone:
            self._courier.hand(self, None, FINAL)
        return not self.gone

    def send(self, response: Any, flags: int) -> None:
        """Sends a response; called by the courier's thread."""
        try:
            if response is None:
                self._sender.send(flags=flags)
            else:
                self._sender.send(response, flags)
        except Exception as error:  # Triton has closed the request: nobody is there any more
            self.gone = True
            pb_utils.Logger.log_warn(f"a session ended: {error}")


class SessionOutlet:
    """The outlet of one text of a session, see `responses.Outlet`.

    Args:
        session: that it belongs to.
        number: of the text.
    """

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number
        session.begin(number)

    def send(self, piece: Piece, text: str, last: bool) -> None:
        """Adds a piece to the session's next response."""
        self._session.add(self._number, piece, text)
        if last:
            self._session.cancel(self._number)

    def left(self) -> bool:
        """Whether the text is wanted no more."""
        return not self._session.wants(self._number)

    def fail(self, error: Exception, cancelled: bool) -> None:
        """Ends with an error; one that was cancelled is not waited for."""
        self._session.cancel(self._number)
        if not cancelled:
            self._session.fail(self._number, error)


class Sessions:
    """All sessions of one model version, by name."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}
        self._courier = Courier()

    def __bool__(self) -> bool:
        return bool(self._open)

    def open(self, name: str, sender: Any) -> None:
        """Opens a session.

        Raises:
            InvalidRequest: there is one of that name.
        """
        if name in self._open:
            raise InvalidRequest(f"session: there is one of the name {name!r}")
        self._open[name] = Session(sender, self._courier)

    def get(self, name: str) -> Session | None:
        """The session of that name; None when there is none."""
        return self._open.get(name)

    def flush(self) -> None:
        """Sends what the last step made."""
        for session in list(self._open.values()):
            session.flush()

    def look(self) -> None:
        """Ends the sessions that their gateways have left."""
        for name, session in list(self._open.items()):
            if not session.look():
                del self._open[name]
