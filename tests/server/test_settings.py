from pathlib import Path

import pytest

from millis_server import settings
from millis_server.settings import ConfigError, read_settings


def test_an_option_wins_over_the_environment_and_that_over_the_default(monkeypatch):
    monkeypatch.setenv("MILLIS_PORT", "5000")
    monkeypatch.setenv("MILLIS_LANES", "3")
    settings = read_settings(["--port", "6000", "--model-repository", "models"])
    assert (settings.port, settings.lanes, settings.max_batch) == (6000, 3, 32)
    assert settings.model_repository == Path("models")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "70000"], "--port (MILLIS_PORT): Input should be less than or equal to 65535"),
        (["--max-batch", "0"], "--max-batch (MILLIS_MAX_BATCH): Input should be greater than or equal to 1"),
        (
            ["--max-inputs", "9000"],
            "Value error, max_pending_inputs (4096) must be at least max_inputs (9000)",
        ),
        (
            ["--triton-url", "host"],
            "Value error, triton_url must be host:port with a port of 1 to 65535, not 'host'",
        ),
        (
            ["--triton-url", "127.0.0.1:abc"],
            "Value error, triton_url must be host:port with a port of 1 to 65535, not '127.0.0.1:abc'",
        ),
        (
            ["--triton-url", "127.0.0.1:8000", "--triton-grpc-url", "127.0.0.1:70000"],
            "Value error, triton_grpc_url must be host:port with a port of 1 to 65535, not '127.0.0.1:70000'",
        ),
        (
            ["--otlp-endpoint", "http://127.0.0.1"],
            "Value error, otlp_endpoint must be host:port with a port of 1 to 65535, not 'http://127.0.0.1'",
        ),
    ],
)
def test_a_wrong_setting_is_named(argv, message):
    with pytest.raises(ConfigError) as caught:
        read_settings(argv)
    assert str(caught.value) == message


def test_traces_without_opentelemetry_are_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        read_settings(["--otlp-endpoint", "127.0.0.1:4317"])
    assert str(caught.value) == (
        "Value error, otlp_endpoint needs OpenTelemetry, which is not installed: pip install 'millis[tracing]'"
    )
