"""A fake gateway for the tests of programs that use Millis: a real gRPC server with made-up answers.

It listens on a free loopback port of this process and serves `Client`, `AsyncClient`, and any other gRPC client:

    import millis
    from millis.testing import FakeGateway, classified

    def test_refund_is_routed_to_accounting():
        with FakeGateway() as gateway, millis.Client(gateway.target) as client:
            gateway.script("ClassifyText", classified("refund"))
            assert my_router(client, "I want my money back") == "accounting"
            assert gateway.requests[0].message.texts == ["I want my money back"]

Without a script every call is answered in full form from the text alone, so equal inputs give equal answers.
A script is a queue of steps for one RPC; each call takes the next one, and when none is left the default
answer comes back. A step is a response message of `millis.v1`, a `FakeError`, or a function from the request
message to either of them (which may also sleep, to make a deadline pass).

A step of GenerateText is a `FakeError` or the messages of a stream, the last of which may be a `FakeError` too:
`generated("Hello", " world")`, or a generator function from the request, which may wait between two messages.
Without a script the words of the prompt come back, one by one. `max_tokens`, `stop`, `n`, `choices`, `logprobs` and
`ignore_eos` are obeyed; `json_schema` and `regex` are not.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc
from google.protobuf.message import Message

from millis import _channel, _fake_answers, _fake_generation
from millis._fake_errors import DOMAIN, FakeError, abort
from millis._fake_models import FakeModels
from millis.v1 import inference_pb2 as pb
from millis.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc

__all__ = [
    "DOMAIN",
    "Answer",
    "FakeError",
    "FakeGateway",
    "RecordedRequest",
    "Step",
    "classified",
    "generated",
]


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A request that arrived at the fake gateway."""

    method: str
    """For example `ClassifyText`."""
    message: Any
    """The request message of `millis.v1`."""
    metadata: dict[str, str | bytes]
    """Metadata of the call, gRPC's own `user-agent` included."""
    time_left: float | None
    """Seconds until its deadline at arrival; None when it has none."""
    cancelled: threading.Event = field(default_factory=threading.Event, compare=False, repr=False)
    """Set when the caller left a GenerateText before its end, or its deadline passed. Wait for it: the news needs a
    moment to arrive."""


_FOR_EVER_S = 1e9
"""grpc tells some calls without a deadline by 292 years."""

Answer: TypeAlias = Message | FakeError | Iterable[Message | FakeError]
Step: TypeAlias = Answer | Callable[[Any], Answer]


def classified(*labels: str) -> pb.ClassifyTextResponse:
    """A response to ClassifyText, one label for each text of the request, each with score 1."""
    results = [pb.TextClassification(labels=[pb.LabelScore(label=label, score=1.0)]) for label in labels]
    return pb.ClassifyTextResponse(results=results)


def generated(*texts: str) -> list[pb.GenerateTextResponse]:
    """The stream of a GenerateText that ends by itself: a delta, of one token, for each text."""
    return list(_fake_generation.stream(pb.GenerateTextRequest(), texts, pb.FINISH_REASON_STOP))


class FakeGateway:
    """A gateway that answers from a script. Use it in a `with` block; its attributes are for the test to read.

    Threads: scripts may be changed and requests read while calls run.

    Args:
        port: loopback port to listen on. Default: 0, any free one.

    Attributes:
        target: address to give to a client, for example `127.0.0.1:43211`.
        requests: every request so far, in order of arrival, retries included.
        serving: what `wait_ready` and health checks are told; set it to False for a gateway that starts.
        models: the models by name, as `client.models` sees them; use `publish` and `remove` to change them.
    """

    def __init__(self, port: int = 0) -> None:
        self.requests: list[RecordedRequest] = []
        self.serving = True
        self.models: dict[str, models_pb2.Model] = {"fake": _fake_answers.model()}
        self._scripts: defaultdict[str, deque[Step]] = defaultdict(deque)
        self._changed = threading.Condition()
        self._changes: list[models_pb2.WatchModelsResponse] = []
        # A thread for each call under way: a watch holds its thread until it ends.
        self._server = grpc.server(ThreadPoolExecutor(max_workers=64, thread_name_prefix="fake-gateway"))
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_FakeInference(self), self._server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(FakeModels(self), self._server)
        health: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(self._health)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),)
        )
        self.target = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def script(self, method: str, *steps: Step) -> None:
        """Adds steps to the script of an RPC.

        Args:
            method: name of an RPC of `millis.v1`, for example `EmbedText`.
            steps: what the next calls of it are answered with.

        Raises:
            ValueError: there is no such RPC, or it is WatchModels, which `publish` and `remove` drive.
        """
        if method not in _SCRIPTABLE:
            raise ValueError(f"method: {method!r} is not one of {', '.join(_SCRIPTABLE)}")
        self._scripts[method].extend(steps)

    def publish(self, model: models_pb2.Model) -> None:
        """Adds or replaces a model; watchers are told."""
        with self._changed:
            self.models[model.name] = model
            self._changes.append(models_pb2.WatchModelsResponse(name=model.name, model=model))
            self._changed.notify_all()

    def remove(self, name: str) -> None:
        """Removes a model; watchers are told."""
        with self._changed:
            del self.models[name]
            self._changes.append(models_pb2.WatchModelsResponse(name=name))
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends every call and frees the port."""
        self._server.stop(grace=None).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _health(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        return _channel.HEALTH_SERVING if self.serving else b"\x08\x02"  # NOT_SERVING = 2

    def _answer(
        self, method: str, request: Any, context: grpc.ServicerContext, default: Callable[[Any], Answer]
    ) -> Any:
        """Records a request and takes the next step of its script."""
        self._record(method, request, context)
        return self._next_answer(method, request, context, default)

    def _next_answer(
        self, method: str, request: Any, context: grpc.ServicerContext, default: Callable[[Any], Answer]
    ) -> Any:
        script = self._scripts[method]
        step: Step = script.popleft() if script else default
        answer = step(request) if callable(step) else step
        if isinstance(answer, FakeError):
            abort(context, answer)
        return answer

    def _stream(self, request: pb.GenerateTextRequest, context: grpc.ServicerContext) -> Iterator[Any]:
        """Answers a GenerateText, and notes when its caller leaves."""
        recorded, ended = self._record("GenerateText", request, context), threading.Event()

        def note() -> None:
            if not ended.is_set():
                recorded.cancelled.set()

        if not context.add_callback(note):
            note()  # it has ended already
        try:
            for message in self._next_answer("GenerateText", request, context, _fake_generation.generate):
                if isinstance(message, FakeError):
                    abort(context, message)
                yield message
        except Exception:  # an abort, or a fault of the script: the caller is still there
            ended.set()
            raise
        ended.set()

    def _record(self, method: str, request: Any, context: grpc.ServicerContext) -> RecordedRequest:
        metadata = dict(context.invocation_metadata())
        left: float | None = context.time_remaining()
        if left is not None and left > _FOR_EVER_S:
            left = None
        recorded = RecordedRequest(method, request, metadata, left)
        self.requests.append(recorded)
        return recorded

    def _watch(self, name: str, context: grpc.ServicerContext) -> Iterator[models_pb2.WatchModelsResponse]:
        """Every model, then what changes, until the caller or the gateway goes."""
        context.add_callback(self._wake)
        with self._changed:
            seen = len(self._changes)
            first = [models_pb2.WatchModelsResponse(name=each, model=self.models[each]) for each in sorted(self.models)]
        yield from (each for each in first if name in ("", each.name))
        while True:
            with self._changed:
                while len(self._changes) == seen and context.is_active():
                    self._changed.wait()
                if not context.is_active():
                    return
                news, seen = self._changes[seen:], len(self._changes)
            yield from (each for each in news if name in ("", each.name))

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    def ClassifyText(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's names
        return self._gateway._answer("ClassifyText", request, context, _fake_answers.classify)

    def ClassifyTokens(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("ClassifyTokens", request, context, _fake_answers.tag)

    def EmbedText(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("EmbedText", request, context, _fake_answers.embed)

    def RankTexts(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("RankTexts", request, context, _fake_answers.rank)

    def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("Tokenize", request, context, _fake_answers.tokenize)

    def GenerateText(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._stream(request, context)


_SCRIPTABLE = sorted(
    method.name
    for file in (pb.DESCRIPTOR, models_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
    if method.name != "WatchModels"
)
