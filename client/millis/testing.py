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
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Never, Self, TypeAlias

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from millis import _channel, _fake_answers
from millis.errors import STATUS_DETAILS_KEY
from millis.v1 import inference_pb2 as pb
from millis.v1 import inference_pb2_grpc, models_pb2, models_pb2_grpc, types_pb2

DOMAIN = "millis.dev"
"""`ErrorInfo.domain` of the gateway's errors."""


@dataclass(frozen=True, slots=True)
class FakeError:
    """A status to answer with, and its `google.rpc` details; those left empty are not sent."""

    code: grpc.StatusCode
    message: str = "scripted by the test"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    field_violations: dict[str, str] = field(default_factory=dict)
    """Description by field."""
    retry_after: float | None = None
    """Seconds."""
    resource_type: str = ""
    resource_name: str = ""


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


_FOR_EVER_S = 1e9
"""grpc tells some calls without a deadline by 292 years."""

Answer: TypeAlias = Message | FakeError
Step: TypeAlias = Answer | Callable[[Any], Answer]


def classified(*labels: str) -> pb.ClassifyTextResponse:
    """A response to ClassifyText, one label for each text of the request, each with score 1."""
    results = [pb.TextClassification(labels=[pb.LabelScore(label=label, score=1.0)]) for label in labels]
    return pb.ClassifyTextResponse(results=results)


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
        models_pb2_grpc.add_ModelServiceServicer_to_server(_FakeModels(self), self._server)
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
        script = self._scripts[method]
        step: Step = script.popleft() if script else default
        answer = step if isinstance(step, (Message, FakeError)) else step(request)
        if isinstance(answer, FakeError):
            _abort(context, answer)
        return answer

    def _record(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata())
        left: float | None = context.time_remaining()
        if left is not None and left > _FOR_EVER_S:
            left = None
        self.requests.append(RecordedRequest(method, request, metadata, left))

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


class _FakeModels(models_pb2_grpc.ModelServiceServicer):
    def __init__(self, gateway: FakeGateway) -> None:
        self._gateway = gateway

    def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("ListModels", request, context, self._list)

    def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("GetModel", request, context, self._get)

    def LoadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("LoadModel", request, context, self._load)

    def UnloadModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._gateway._answer("UnloadModel", request, context, self._unload)

    def WatchModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._gateway._record("WatchModels", request, context)
        return self._gateway._watch(request.name, context)

    def _list(self, request: models_pb2.ListModelsRequest) -> Answer:
        """Pages whose token is the name of the first model on them."""
        names = sorted(
            name
            for name, model in self._gateway.models.items()
            if name >= request.page_token and request.task in (types_pb2.TASK_UNSPECIFIED, model.task)
        )
        size = request.page_size or 100
        models = [self._gateway.models[name] for name in names[:size]]
        return models_pb2.ListModelsResponse(models=models, next_page_token=names[size] if len(names) > size else "")

    def _get(self, request: models_pb2.GetModelRequest) -> Answer:
        model = self._gateway.models.get(request.name)
        return models_pb2.GetModelResponse(model=model) if model else _unknown(request.name)

    def _load(self, request: models_pb2.LoadModelRequest) -> Answer:
        model = self._turn(request.name, models_pb2.VARIANT_STATE_READY)
        return models_pb2.LoadModelResponse(model=model) if model else _unknown(request.name)

    def _unload(self, request: models_pb2.UnloadModelRequest) -> Answer:
        model = self._turn(request.name, models_pb2.VARIANT_STATE_UNLOADED)
        return models_pb2.UnloadModelResponse(model=model) if model else _unknown(request.name)

    def _turn(self, name: str, state: models_pb2.VariantState.ValueType) -> models_pb2.Model | None:
        model = self._gateway.models.get(name)
        if model is None:
            return None
        turned = models_pb2.Model()
        turned.CopyFrom(model)
        for variant in turned.variants:
            variant.state = state
        self._gateway.publish(turned)
        return turned


_SCRIPTABLE = sorted(
    method.name
    for file in (pb.DESCRIPTOR, models_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
)


def _unknown(name: str) -> FakeError:
    return FakeError(
        grpc.StatusCode.NOT_FOUND,
        f"model {name!r} is unknown",
        reason="MODEL_NOT_FOUND",
        resource_type="model",
        resource_name=name,
    )


def _abort(context: grpc.ServicerContext, error: FakeError) -> Never:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.field_violations:
        bad_request = error_details_pb2.BadRequest()
        for name, description in error.field_violations.items():
            bad_request.field_violations.add(field=name, description=description)
        details.append(bad_request)
    if error.retry_after is not None:
        retry_info = error_details_pb2.RetryInfo()
        retry_info.retry_delay.FromNanoseconds(round(error.retry_after * 1e9))
        details.append(retry_info)
    if error.resource_type or error.resource_name:
        details.append(
            error_details_pb2.ResourceInfo(resource_type=error.resource_type, resource_name=error.resource_name)
        )
    status = status_pb2.Status(code=code_pb2.Code.Value(error.code.name), message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    context.set_trailing_metadata(((STATUS_DETAILS_KEY, status.SerializeToString()),))
    context.abort(error.code, error.message)
