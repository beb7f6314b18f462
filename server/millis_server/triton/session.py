"""All generations of one version of our own backend over one stream: what a step made comes in one message.

triton/generation_backend/decoding/sessions.py says why, and what stands in the messages. The session opens with the
first text and closes when there has been none for a while, because Triton waits for open requests before it unloads a
model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as triton

from millis_server.errors import BackendFault, ModelUnavailable
from millis_server.tasks.generation import Prompt, TextGeneration
from millis_server.triton.client import StubDied
from millis_server.triton.failures import DIED, failed_call, named
from millis_server.triton.protocols import Chunk
from millis_server.triton.wire import add, add_text, outputs, sampling_parameters

SILENCE_SECONDS = 1.0
"""When nothing came for so long while texts are being made, the model's process is asked whether it lives: Triton
leaves the requests of a dead one open for ever."""

IDLE_SECONDS = 15.0
"""How long a session stays open without a text: opening one costs the first text that comes a millisecond."""

CLOSE_SECONDS = 2.0
"""Longest wait for Triton to end a session that is closed."""

FINISHES = ("", "stop", "length")
FAILED = 3
PIECE = 7
"""Numbers that describe one piece."""

_numbers = itertools.count()

NewRequest = Callable[[], triton.ModelInferRequest]
Arrivals = asyncio.Queue[Chunk | Exception | str]


class Sessions:
    """Generations of one model version.

    Args:
        stub: Triton's calls.
        new_request: makes an empty request to the version.
        patience: longest silence, in seconds, of a process that lives.
    """

    def __init__(self, stub: Callable[[], Any], new_request: NewRequest, patience: float) -> None:
        self._stub = stub
        self._new_request = new_request
        self._patience = patience
        self._session: _Session | None = None

    def begin(self, task: TextGeneration, prompt: Prompt) -> SessionChunks:
        """Asks for a text at once."""
        session = self._session
        if session is None or session.closed:
            session = self._session = _Session(self._stub(), self._new_request, self._patience)
        return SessionChunks(session, task, prompt)

    async def close(self) -> None:
        """Closes the session, which has no texts any more."""
        if self._session is not None:
            await self._session.close()


class SessionChunks:
    """What comes of one request. Closing it, or reading it to its end, frees the engine.

    A class and not a generator: it has asked before anybody reads, and a token passes it in less time.
    """

    def __init__(self, session: _Session, task: TextGeneration, prompt: Prompt) -> None:
        self._session = session
        self._task = task
        self._going = task.n
        self._closed = False
        self._arrivals: Arrivals = asyncio.Queue()
        self._number = session.begin(task, prompt, self._arrivals)

    def __aiter__(self) -> SessionChunks:
        return self

    async def __anext__(self) -> Chunk:
        if not self._going:
            await self.aclose()
            raise StopAsyncIteration
        arrived = await self._arrivals.get()
        if isinstance(arrived, Chunk):
            if arrived.finish:
                self._going -= 1
            return arrived
        await self.aclose()
        raise named(arrived, self._task) if isinstance(arrived, str) else arrived

    async def aclose(self) -> None:
        """Ends it; what has not come never does."""
        if not self._closed:
            self._closed = True
            self._session.end(self._number, not self._going)


class _Session:
    """One stream to Triton, with a task that writes and one that reads."""

    def __init__(self, stub: Any, new_request: NewRequest, patience: float) -> None:
        self.closed = False
        self._stub = stub
        self._new_request = new_request
        self._patience = patience
        # Another gateway of the same Triton may have the same process id, in a container of its own.
        self._name = uuid4().hex
        self._arrivals: dict[int, Arrivals] = {}
        self._outgoing: asyncio.Queue[triton.ModelInferRequest | None] = asyncio.Queue()
        self._outgoing.put_nowait(self._request())
        self._idle: asyncio.TimerHandle | None = None
        self._task = asyncio.create_task(self._run())

    def begin(self, task: TextGeneration, prompt: Prompt, arrivals: Arrivals) -> int:
        """Asks for a text; what comes of it is put into `arrivals`, a failure as an exception or Triton's message."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        number = next(_numbers) % (1 << 31)
        parameters = sampling_parameters(task, prompt) | {"n": task.n}
        if task.beams:
            parameters["beams"] = task.beams
        request = self._request()
        add(request, "number", "INT32", 1, number.to_bytes(4, "little"))
        add(request, "prompt_token_ids", "INT32", len(prompt.ids), np.array(prompt.ids, np.int32).tobytes())
        add_text(request, "sampling_parameters", json.dumps(parameters))
        self._arrivals[number] = arrivals
        self._outgoing.put_nowait(request)
        return number

    def end(self, number: int, whole: bool) -> None:
        """Forgets a text; one that is not whole is dropped at the engine too."""
        self._arrivals.pop(number, None)
        if self.closed:
            return
        if not whole:
            self._cancel(number)
        if not self._arrivals:
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._leave)

    async def close(self) -> None:
        """Ends the session at Triton."""
        self._leave()
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)
        self._task.cancel()

    def _leave(self) -> None:
        if not self.closed:
            self.closed = True
            self._cancel(-1)
            self._outgoing.put_nowait(None)

    def _cancel(self, number: int) -> None:
        request = self._request()
        add(request, "cancel", "INT32", 1, number.to_bytes(4, "little", signed=True))
        self._outgoing.put_nowait(request)

    def _request(self) -> triton.ModelInferRequest:
        request = self._new_request()
        add_text(request, "session", self._name)
        return request

    async def _run(self) -> None:
        call = self._stub.ModelStreamInfer()
        writing = asyncio.create_task(self._write(call))
        failure: Exception | str = ModelUnavailable("the session was closed")
        try:
            failure = await self._read(call) or ModelUnavailable("Triton ended the session")
        except grpc.aio.AioRpcError as error:
            failure = failed_call(error)
        except StubDied as error:
            failure = error
        except Exception as error:  # whatever is wrong with a response: nobody may wait for ever
            failure = BackendFault(f"Triton's response cannot be read: {type(error).__name__}: {error}")
        finally:
            writing.cancel()
            call.cancel()
            self.closed = True
            if self._idle is not None:
                self._idle.cancel()
            for arrivals in self._arrivals.values():
                arrivals.put_nowait(failure)

    async def _write(self, call: Any) -> None:
        while (request := await self._outgoing.get()) is not None:
            await call.write(request)
        await call.done_writing()

    async def _read(self, call: Any) -> str:
        """Hands out what comes; returns Triton's message when it says that the session has failed."""
        while True:
            reading = asyncio.ensure_future(call.read())
            try:
                while not (await asyncio.wait({reading}, timeout=SILENCE_SECONDS))[0]:
                    if self._arrivals and not await self._lives():
                        raise StubDied(DIED)
            except BaseException:
                reading.cancel()
                raise
            message = reading.result()
            if message is grpc.aio.EOF:
                return ""
            if message.error_message:
                return str(message.error_message)
            self._hand_out(outputs(message.infer_response))

    def _hand_out(self, found: dict[str, bytes]) -> None:
        if "pieces" not in found:
            return
        whole = found["pieces"]
        (count,) = np.frombuffer(whole, np.int32, 1)
        pieces = np.frombuffer(whole, np.int32, PIECE * count, 4).reshape(-1, PIECE)
        tokens_told, logprobs_told, _ = pieces[:, 2:5].sum(0).tolist()
        place = pieces.nbytes + 4
        tokens = np.frombuffer(whole, np.int32, tokens_told, place).tolist()
        place += 4 * tokens_told
        logprobs = np.frombuffer(whole, np.float32, logprobs_told, place).tolist()
        place += 4 * logprobs_told
        token = logprob = 0
        for number, sequence, some, told, size, made, finish in pieces.tolist():
            arrivals = self._arrivals.get(number)
            if arrivals is not None:
                text = whole[place : place + size].decode()
                if finish == FAILED:
                    arrivals.put_nowait(text)
                else:
                    chosen, values = tokens[token : token + some], logprobs[logprob : logprob + told]
                    arrivals.put_nowait(Chunk(sequence, text, chosen, values, made, FINISHES[finish]))
            token += some
            logprob += told
            place += size

    async def _lives(self) -> bool:
        """Whether the model's process answers. A step may take long, and nothing is answered meanwhile."""
        call = self._stub.ModelStreamInfer(timeout=self._patience)
        request = self._new_request()
        # There is no such session: the backend refuses it at once, and generates nothing.
        add_text(request, "session", uuid4().hex)
        add(request, "cancel", "INT32", 1, bytes(4))
        try:
            await call.write(request)
            await call.done_writing()
            response = await call.read()
        except grpc.aio.AioRpcError:
            return False
        finally:
            call.cancel()
        return response is not grpc.aio.EOF and "Stub process" not in response.error_message
