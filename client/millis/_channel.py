"""How the SDK reaches a gateway: address, encryption, retries, keep-alive, limits."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from millis.errors import DeadlineExceededError

TARGET_ENV = "MILLIS_TARGET"
API_KEY_ENV = "MILLIS_API_KEY"
DEFAULT_TARGET = "127.0.0.1:50051"
"""Where `millis serve` listens unless told otherwise."""
DEFAULT_TIMEOUT_S = 30.0
"""Long enough for a thousand texts on two cores; a call without a limit can hang for ever."""
GENERATE_TIMEOUT_S = 120.0
"""For generate: a thousand tokens or more, at the tens a second of a small model on a CPU, and the wait for a place."""
LOAD_TIMEOUT_S = 300.0
"""For load and unload, which answer when the work is done: loading, warming, draining."""
DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""gRPC's own 4 MiB is less than 1,024 vectors of 1,024 floats."""

_SERVICES = ("millis.v1.InferenceService", "millis.v1.ModelService")
HEALTH_METHOD = "/grpc.health.v1.Health/Check"
HEALTH_REQUEST = b""
"""An empty grpc.health.v1.HealthCheckRequest: the state of the whole server."""
HEALTH_SERVING = b"\x08\x01"
"""A HealthCheckResponse whose only field, `status = 1`, is SERVING = 1.

Written by hand because the generated health stubs are a package that the SDK does not bring.
"""

READY_POLL_S = 0.05
"""Pause between two questions to a gateway that answers but is not ready."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """Encryption of the connection. Each field holds PEM text, None stands for the default."""

    root_certificates: bytes | None = None
    """Authorities to trust. Default: those that gRPC brings."""
    private_key: bytes | None = None
    """The client's key, for mutual TLS."""
    certificate_chain: bytes | None = None
    """The client's certificate, for mutual TLS."""
    server_name: str | None = None
    """Name to expect in the gateway's certificate. Default: the host of the target."""

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            raise ValueError("TlsConfig: give private_key and certificate_chain together, or neither")


@dataclass(frozen=True, slots=True)
class RetryConfig:
    """Retries of a call that ended with UNAVAILABLE, the one status that says "nothing was done"."""

    attempts: int = 4
    """Attempts in all, the first included, 1 to 5 (gRPC's own limit). 1: no retry."""
    initial_backoff_s: float = 0.1
    """Longest pause before the first retry; it doubles from then on, with jitter."""
    max_backoff_s: float = 2.0
    """Longest pause."""

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 5:
            raise ValueError(f"RetryConfig: attempts must be 1 to 5, got {self.attempts}")
        if not 0 < self.initial_backoff_s <= self.max_backoff_s:
            raise ValueError(
                "RetryConfig: initial_backoff_s must be more than 0 and at most max_backoff_s, "
                f"got {self.initial_backoff_s} and {self.max_backoff_s}"
            )


@dataclass(frozen=True, slots=True)
class KeepAliveConfig:
    """Pings that find a dead connection under a running call."""

    interval_s: float = 300.0
    """A gRPC server hangs up on clients that ping a silent call more often than once in 5 minutes."""
    timeout_s: float = 20.0
    """Time for the answer to a ping (gRPC's default)."""

    def __post_init__(self) -> None:
        if self.interval_s <= 0 or self.timeout_s <= 0:
            raise ValueError(
                "KeepAliveConfig: interval_s and timeout_s must be more than 0, "
                f"got {self.interval_s} and {self.timeout_s}"
            )


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """All that a channel is made of; both twins make theirs from it."""

    target: str
    tls: TlsConfig | None
    retry: RetryConfig
    keepalive: KeepAliveConfig
    max_message_bytes: int

    @property
    def options(self) -> list[tuple[str, str | int]]:
        """Channel arguments for gRPC."""
        options: list[tuple[str, str | int]] = [
            ("grpc.service_config", json.dumps(_service_config(self.retry))),
            ("grpc.enable_retries", int(self.retry.attempts > 1)),
            ("grpc.keepalive_time_ms", round(self.keepalive.interval_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.keepalive.timeout_s * 1000)),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            # gRPC waits 1 s and then up to 2 minutes: too long beside a gateway that starts in seconds.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if self.target.startswith(("127.", "localhost:", "[::1]")):
            options.append(("grpc.enable_http_proxy", 0))  # no proxy reaches our own loopback
        if self.tls is not None and self.tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Credentials of an encrypted channel; None for a plain one."""
        if self.tls is None:
            return None
        return grpc.ssl_channel_credentials(
            self.tls.root_certificates, self.tls.private_key, self.tls.certificate_chain
        )


def channel_config(
    target: str | None,
    tls: TlsConfig | bool,
    retry: RetryConfig | None,
    keepalive: KeepAliveConfig | None,
    max_message_bytes: int,
) -> ChannelConfig:
    """Fills in the defaults and refuses what cannot work.

    Raises:
        ValueError: the target has no port, or a number is out of range; the message names it.
    """
    if max_message_bytes < 1:
        raise ValueError(f"max_message_bytes must be at least 1, got {max_message_bytes}")
    if tls is True:
        tls = TlsConfig()
    return ChannelConfig(
        target=_target(target),
        tls=tls or None,
        retry=retry or RetryConfig(),
        keepalive=keepalive or KeepAliveConfig(),
        max_message_bytes=max_message_bytes,
    )


def call_metadata(metadata: Mapping[str, str] | None, api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Metadata of every call: the caller's own, and the key.

    Raises:
        ValueError: the key cannot be sent, or the metadata holds another credential.
    """
    own = {key.lower(): value for key, value in (metadata or {}).items()}
    source = "api_key"
    if api_key is None and "authorization" not in own:
        source, api_key = API_KEY_ENV, os.environ.get(API_KEY_ENV, "").strip() or None
    if api_key is not None:
        if "authorization" in own:
            raise ValueError("api_key and metadata's authorization are both given")
        if not (api_key.isascii() and api_key.isprintable() and api_key and " " not in api_key):
            raise ValueError(f"{source}: a key is printable ASCII without spaces")
        own["authorization"] = f"Bearer {api_key}"
    return tuple(own.items())


def _target(target: str | None) -> str:
    source = "target"
    if target is None:
        source, target = TARGET_ENV, os.environ.get(TARGET_ENV, "").strip() or DEFAULT_TARGET
    host, colon, port = target.rpartition(":")
    if target.startswith(("unix:", "unix-abstract:")):
        return target
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"{source}: {target!r} does not end in a port; write it like {DEFAULT_TARGET}")
    return target


def _service_config(retry: RetryConfig) -> dict[str, object]:
    """gRPC's service config, https://github.com/grpc/grpc/blob/master/doc/service_config.md."""
    method: dict[str, object] = {"name": [{"service": service} for service in _SERVICES]}
    if retry.attempts > 1:
        method["retryPolicy"] = {
            "maxAttempts": retry.attempts,
            "initialBackoff": f"{retry.initial_backoff_s:.9f}s",
            "maxBackoff": f"{retry.max_backoff_s:.9f}s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
    # Throttling: when most calls fail, retries stop, so that clients do not keep a struggling gateway down.
    return {"methodConfig": [method], "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.1}}


def not_ready(target: str, limit_s: float) -> DeadlineExceededError:
    """The error of `wait_ready`."""
    return DeadlineExceededError(f"the gateway at {target} was not ready within {limit_s:g} s")
