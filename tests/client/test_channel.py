import json
from collections.abc import Callable
from typing import Any

import pytest

import millis
from millis._channel import ChannelConfig, channel_config
from tests.client.twins import AnyClient, maybe_await


def config(target: str | None = None, **changes: Any) -> ChannelConfig:
    settings: dict[str, Any] = {"tls": False, "retry": None, "keepalive": None, "max_message_bytes": 1024} | changes
    return channel_config(target, **settings)


async def test_the_target_comes_from_argument_environment_or_default(
    kind: type[AnyClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILLIS_TARGET", raising=False)
    targets = []
    for environment, argument in ((None, None), ("  ", None), ("there:1", None), ("there:1", "here:2")):
        if environment is not None:
            monkeypatch.setenv("MILLIS_TARGET", environment)
        client = kind(argument)
        targets.append(client.target)
        await maybe_await(client.close())
    assert targets == ["127.0.0.1:50051", "127.0.0.1:50051", "there:1", "here:2"]


@pytest.mark.parametrize("target", ["host:1", "[::1]:50051", "dns:///host:443", "unix:/run/millis.sock"])
def test_a_target_with_a_port_or_a_socket_is_taken(target: str) -> None:
    assert config(target).target == target


@pytest.mark.parametrize("target", ["", "host", "host:", ":1", "host:0", "host:70000", "host:http", "dns:///host"])
def test_a_target_without_a_port_is_refused(target: str) -> None:
    with pytest.raises(ValueError) as caught:
        config(target)
    assert str(caught.value) == f"target: {target!r} does not end in a port; write it like 127.0.0.1:50051"


def test_a_bad_target_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLIS_TARGET", "gateway")
    with pytest.raises(ValueError) as caught:
        config()
    assert str(caught.value) == "MILLIS_TARGET: 'gateway' does not end in a port; write it like 127.0.0.1:50051"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config(max_message_bytes=0), "max_message_bytes must be at least 1, got 0"),
        (lambda: millis.RetryConfig(attempts=6), "RetryConfig: attempts must be 1 to 5, got 6"),
        (
            lambda: millis.RetryConfig(initial_backoff_s=3),
            "RetryConfig: initial_backoff_s must be more than 0 and at most max_backoff_s, got 3 and 2.0",
        ),
        (
            lambda: millis.KeepAliveConfig(interval_s=0),
            "KeepAliveConfig: interval_s and timeout_s must be more than 0, got 0 and 20.0",
        ),
        (
            lambda: millis.TlsConfig(private_key=b"key"),
            "TlsConfig: give private_key and certificate_chain together, or neither",
        ),
    ],
)
def test_a_setting_that_cannot_work_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_only_unavailable_is_retried_by_the_service_config() -> None:
    options = dict(config(retry=millis.RetryConfig(attempts=3, initial_backoff_s=0.25)).options)
    assert json.loads(str(options["grpc.service_config"]))["methodConfig"] == [
        {
            "name": [{"service": "millis.v1.InferenceService"}, {"service": "millis.v1.ModelService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.250000000s",
                "maxBackoff": "2.000000000s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]


def test_one_attempt_is_no_retry_policy() -> None:
    options = dict(config(retry=millis.RetryConfig(attempts=1)).options)
    assert options["grpc.enable_retries"] == 0
    assert "retryPolicy" not in str(options["grpc.service_config"])


def test_no_proxy_stands_between_us_and_our_loopback() -> None:
    assert dict(config("127.0.0.1:1").options)["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(config("gateway:1").options)


async def test_a_message_larger_than_the_limit_is_refused(kind: type[AnyClient], gateway: Any) -> None:
    client = kind(gateway.target, max_message_bytes=100)
    with pytest.raises(millis.ResourceExhaustedError):
        await maybe_await(client.classify("x" * 1000))
    assert gateway.requests == []
    await maybe_await(client.close())


async def test_a_tls_client_does_not_talk_to_a_plain_gateway(kind: type[AnyClient], gateway: Any) -> None:
    client = kind(gateway.target, tls=True, retry=millis.RetryConfig(attempts=1))
    with pytest.raises(millis.UnavailableError):
        await maybe_await(client.classify("t"))
    await maybe_await(client.close())
