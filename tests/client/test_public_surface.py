"""What users import; a change here is a change of the SDK's promise."""

import inspect
import subprocess
import sys

import millis
import millis.testing

EXPORTED = [
    "AsyncClient",
    "AsyncGenerationStream",
    "CallOptions",
    "Classification",
    "ClassifiedToken",
    "ClassifyOptions",
    "Client",
    "ClientClosedError",
    "Completion",
    "DeadlineExceededError",
    "EmbedOptions",
    "Embedding",
    "Entity",
    "ErrorDetails",
    "Exit",
    "FailedPreconditionError",
    "FieldViolation",
    "GenerateOptions",
    "Generated",
    "GenerationStream",
    "GenerationTiming",
    "Info",
    "InternalError",
    "InvalidArgumentError",
    "KeepAliveConfig",
    "Label",
    "LatencyPoint",
    "Message",
    "MillisError",
    "Model",
    "ModelChange",
    "ModelVariant",
    "NotFoundError",
    "PermissionDeniedError",
    "Quality",
    "RankOptions",
    "Ranked",
    "Ranking",
    "RefusedVersion",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "Results",
    "RetryConfig",
    "Sampling",
    "ServedBy",
    "Span",
    "StatusError",
    "TagOptions",
    "TextDelta",
    "Timing",
    "TlsConfig",
    "Token",
    "TokenClassification",
    "Tokenization",
    "TokenizeOptions",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "Usage",
    "__version__",
]


def public(owner: object) -> set[str]:
    return {name for name in vars(owner) if not name.startswith("_")}


def test_the_package_exports_exactly_this() -> None:
    assert millis.__all__ == EXPORTED
    assert [name for name in millis.__all__ if not hasattr(millis, name)] == []


def test_the_clients_are_twins() -> None:
    methods = {"classify", "tag", "embed", "rank", "tokenize", "generate", "wait_ready", "close", "target"}
    assert public(millis.Client) == public(millis.AsyncClient) == methods
    for name in methods - {"target"}:
        sync, asynchronous = getattr(millis.Client, name), getattr(millis.AsyncClient, name)
        if name == "generate":  # each returns the stream of its kind
            assert inspect.signature(sync).parameters == inspect.signature(asynchronous).parameters
        else:
            assert inspect.signature(sync) == inspect.signature(asynchronous), name
    assert inspect.signature(millis.Client) == inspect.signature(millis.AsyncClient)


def test_the_model_apis_are_twins() -> None:
    sync, asynchronous = millis.client.Models, millis.aio.AsyncModels
    assert public(sync) == public(asynchronous) == {"list", "get", "load", "unload", "watch"}
    for name in public(sync):
        ours, theirs = inspect.signature(getattr(sync, name)), inspect.signature(getattr(asynchronous, name))
        assert ours.parameters == theirs.parameters, name


def test_the_streams_are_twins() -> None:
    sync, asynchronous = millis.GenerationStream, millis.AsyncGenerationStream
    assert public(sync) | public(sync.__base__) == public(asynchronous) | public(asynchronous.__base__)
    assert public(sync) | public(sync.__base__) == {"text", "cancel"}


def test_every_public_class_and_method_is_documented() -> None:
    owners = [getattr(millis, name) for name in millis.__all__ if name != "__version__"]
    missing = [owner.__name__ for owner in owners if not owner.__doc__]
    clients = (millis.Client, millis.AsyncClient, millis.client.Models, millis.aio.AsyncModels)
    for owner in (*clients, millis.GenerationStream, millis.AsyncGenerationStream):
        missing += [f"{owner.__name__}.{name}" for name in public(owner) if not getattr(owner, name).__doc__]
    assert missing == []


def test_importing_millis_imports_no_heavy_library() -> None:
    heavy = ["numpy", "torch", "transformers", "tokenizers", "onnxruntime", "pydantic", "tritonclient"]
    program = f"import sys, millis, millis.testing, millis.cli; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
