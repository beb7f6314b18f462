"""Every setting of the gateway, declared once: its option, its environment name, its default and its meaning.

`--triton-url X` and `MILLIS_TRITON_URL=X` are the same setting; the option wins.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from millis_server.access.tls import TlsFiles

MAX_LANES = 64
"""More Triton requests under way at once would only wait there."""


MAX_PORT = 65535


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line and names it."""


class Settings(BaseSettings):
    """Millis gateway: answers language questions over gRPC from models hosted by Triton."""

    model_config = SettingsConfigDict(
        env_prefix="MILLIS_",
        cli_prog_name="millis serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="ignore",
        frozen=True,
    )

    model_repository: Path = Field(Path("model_repository"), description="folder of the published models")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(50051, ge=0, le=MAX_PORT, description="port to listen on; 0 takes a free one")
    callers: Path | None = Field(
        None, description="TOML file of those who may call, with their keys and quotas; without it everybody may"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of the gateway's certificate; with it and --tls-key the port is encrypted"
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's key")
    tls_client_ca: Path | None = Field(
        None, description="PEM file of the authorities whose certificates callers must show (mutual TLS)"
    )
    triton_url: str = Field(
        "",
        description="host:port of a running Triton (HTTP) that serves the same repository; empty starts one",
    )
    triton_grpc_url: str = Field(
        "",
        description="host:port of its gRPC service, for models that generate; empty is the same host and port 8001",
    )
    state_dir: Path = Field(Path(".millis"), description="folder for Triton's backends and log")
    repository_poll_seconds: float = Field(
        1.0, gt=0, le=3600, description="how often the repository is looked at for new versions"
    )
    startup_timeout_seconds: float = Field(
        120.0, gt=0, le=3600, description="longest wait for Triton and for the first models"
    )
    load_timeout_seconds: float = Field(120.0, gt=0, le=3600, description="longest wait for one model version to load")
    infer_timeout_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="longest wait for one answer of Triton; then its model is loaded anew",
    )
    drain_seconds: float = Field(
        10.0, ge=0, le=600, description="how long calls under way may go on when the gateway stops"
    )
    max_inputs: int = Field(1024, ge=1, description="most texts (or documents, or word lists) in one call")
    max_text_bytes: int = Field(65536, ge=1, description="longest text, in bytes of UTF-8")
    max_pending_inputs: int = Field(
        4096, ge=1, description="most texts being worked on at once; more are refused with RESOURCE_EXHAUSTED"
    )
    max_waiting_generations: int = Field(
        64,
        ge=0,
        description="most GenerateText calls that wait for a place at one model; more are refused with "
        "RESOURCE_EXHAUSTED",
    )
    max_message_bytes: int = Field(
        16 * 1024 * 1024,
        ge=65536,
        description="largest request message; larger ones are refused by gRPC itself",
    )
    lanes: int = Field(
        2,
        ge=1,
        le=MAX_LANES,
        description="Triton requests under way at once for one model version, where its config.pbtxt has no "
        "parameter `lanes` (`millis tune` writes one); calls beyond them share the next. Match the model's workers",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=1024,
        description="most texts in one Triton request; a model whose max_batch_size is smaller gets no more than that",
    )
    cache_bytes: int = Field(
        64 * 1024 * 1024,
        ge=0,
        description="most memory for answers kept to be given again, in bytes; 0 switches the cache off",
    )

    metrics_host: str = Field("127.0.0.1", description="address on which Prometheus metrics are served")
    metrics_port: int = Field(9464, ge=0, le=MAX_PORT, description="port of the Prometheus metrics; 0 serves none")
    otlp_endpoint: str = Field(
        "", description="host:port of an OpenTelemetry collector, which gets a trace of every call; empty sends none"
    )

    def triton_grpc(self) -> str:
        """host:port of the gRPC service of a Triton that already runs."""
        return self.triton_grpc_url or f"{self.triton_url.rpartition(':')[0]}:8001"

    def tls(self) -> TlsFiles | None:
        """The files of an encrypted port; None for a plain one."""
        if self.tls_certificate is None or self.tls_key is None:
            return None
        return TlsFiles(self.tls_certificate, self.tls_key, self.tls_client_ca)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_inputs > self.max_pending_inputs:
            raise ValueError(
                f"max_pending_inputs ({self.max_pending_inputs}) must be at least max_inputs ({self.max_inputs})"
            )
        for name in ("triton_url", "triton_grpc_url", "otlp_endpoint"):
            url: str = getattr(self, name)
            host, _, port = url.rpartition(":")
            if url and not (host and port.isdecimal() and 1 <= int(port) <= MAX_PORT):
                raise ValueError(f"{name} must be host:port with a port of 1 to {MAX_PORT}, not {url!r}")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together, and only one is given")
        if self.tls_client_ca is not None and self.tls_key is None:
            raise ValueError("tls_client_ca needs tls_certificate and tls_key")
        if self.otlp_endpoint and find_spec("opentelemetry") is None:
            raise ValueError("otlp_endpoint needs OpenTelemetry, which is not installed: pip install 'millis[tracing]'")
        return self


def read_settings(argv: list[str]) -> Settings:
    """Reads the settings from options, then the environment, then the defaults.

    Args:
        argv: options after `millis serve`.

    Raises:
        ConfigError: a value that is wrong; the message names the setting.
        SystemExit: `--help`, or an option that does not exist.
    """
    try:
        return Settings(_cli_parse_args=argv)  # type: ignore[call-arg]  # an argument of pydantic-settings' own
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        name = f"--{field.replace('_', '-')} (MILLIS_{field.upper()}): " if field else ""
        raise ConfigError(f"{name}{first['msg']}") from error
    except SettingsError as error:
        raise ConfigError(" ".join(str(error).split())) from error
