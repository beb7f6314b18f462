"""A variant's config.pbtxt, and the form in which Triton is told to load certain versions of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2 as triton

from millis_server.errors import BackendFault
from millis_server.repository import CONFIG_FILE


class ConfigUnreadable(BackendFault):
    """The file is missing, or is no ModelConfig; the message is one line and names it."""


def read_config(variant: Path) -> triton.ModelConfig:
    """Reads the config.pbtxt in a variant's folder.

    Raises:
        ConfigUnreadable: the file.
    """
    path = variant / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text("utf-8"), triton.ModelConfig())
    except OSError as error:
        raise ConfigUnreadable(f"{path}: {error.strerror}") from error
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConfigUnreadable(f"{path}: {error}") from error


def config_for(variant: Path, versions: Sequence[str]) -> str:
    """Returns a variant's config in JSON, with a version policy of just these versions in place of its own.

    Raises:
        ConfigUnreadable: the file.
    """
    config = read_config(variant)
    config.version_policy.specific.versions[:] = map(int, versions)
    return json_format.MessageToJson(config, preserving_proto_field_name=True, indent=None)
