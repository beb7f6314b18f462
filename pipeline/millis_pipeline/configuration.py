"""What `millis tune` varies: how a variant runs, as it stands in its config.pbtxt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from millis_server.manifest import Precision
from millis_server.repository import CONFIG_FILE
from millis_server.settings import Settings
from millis_server.triton.backend.engine import DEFAULT_ENGINES, DEVICES, ENGINES, available_devices, precisions

DEFAULT_LANES: int = Settings.model_fields["lanes"].default
LARGEST_REQUEST: int = Settings.model_fields["max_batch"].default
"""Most texts that a gateway puts into one Triton request, unless its setting `max_batch` says otherwise."""

MAX_BATCHES = (8, 16, 32, 64)
PREFERRED_BATCHES = (0, 4, 8)
DELAYS_US = (0, 200, 1000)


class ConfigurationError(ValueError):
    """A config.pbtxt that says what cannot be, or cannot be written; the message is one line and names it."""


@dataclass(frozen=True)
class Configuration:
    """One way to run a model.

    Attributes:
        variant: that answers, for example `int8`.
        engine: of the backend.
        threads: of the engine for one call.
        workers: engine calls side by side.
        max_batch: most texts in one of Triton's batches, and in one of the gateway's requests.
        preferred_batch: size at which Triton waits no longer for more; 0 is none.
        delay_us: how long Triton waits for more, in microseconds.
        lanes: the gateway's Triton requests under way at once.
        device: that the engine computes on.
    """

    variant: str
    engine: str
    threads: int
    workers: int
    max_batch: int
    preferred_batch: int
    delay_us: int
    lanes: int
    device: str = DEVICES[0]

    def __str__(self) -> str:
        preferred = f", preferred batch {self.preferred_batch}" if self.preferred_batch else ""
        return (
            f"{self.variant} on {self.engine} ({self.device}), {self.workers} workers of {self.threads} threads, "
            f"{self.lanes} lanes, batches of up to {self.max_batch}{preferred}, delay {self.delay_us} µs"
        )


def search_space(variants: Sequence[str], compiled: bool = False) -> dict[str, tuple[str | int, ...]]:
    """The values of each field of `Configuration` that a search tries.

    Args:
        variants: that are good enough.
        compiled: whether one of them was compiled for the engine `torch`.
    """
    cores = len(os.sched_getaffinity(0))
    counts = tuple(sorted({*(2**power for power in range(cores.bit_length()) if 2**power <= cores), cores}))
    engines = [engine for engine in ENGINES if find_spec(engine) is not None and (compiled or engine != "torch")]
    available = {device for engine in engines for device in available_devices(engine)}
    return {
        "variant": tuple(variants),
        "engine": tuple(engines),
        "threads": counts,
        "workers": counts,
        "max_batch": MAX_BATCHES,
        "preferred_batch": PREFERRED_BATCHES,
        "delay_us": DELAYS_US,
        "lanes": tuple(sorted({1, *counts, 2 * cores})),
        "device": tuple(device for device in DEVICES if device in available),
    }


def unable(precision_of: Mapping[str, Precision], engines: Iterable[str]) -> set[tuple[str, str]]:
    """Pairs of variant and engine that cannot go together.

    Args:
        precision_of: each variant.
        engines: of a search.
    """
    return {
        (variant, engine)
        for engine in engines
        for variant, precision in precision_of.items()
        if precision not in precisions(engine)
    }


def configuration_of(variant: str, config: triton.ModelConfig, precision: Precision = "f32") -> Configuration:
    """How a config runs its variant, where it says nothing by the backend's and the gateway's defaults.

    Args:
        variant: its name.
        config: of the variant.
        precision: of its versions, which decides about the default engine.

    Raises:
        ConfigurationError: a parameter is no number.
    """

    def number(name: str, default: int) -> int:
        text = config.parameters[name].string_value if name in config.parameters else str(default)
        if not text.isdecimal():
            raise ConfigurationError(f"{config.name}/{CONFIG_FILE}: parameter {name} must be a number, not {text!r}")
        return int(text)

    batching = config.dynamic_batching
    engine = config.parameters["engine"].string_value if "engine" in config.parameters else DEFAULT_ENGINES[precision]
    return Configuration(
        variant=variant,
        engine=engine,
        threads=number("intra_op_threads", 1),
        workers=number("workers", 1),
        max_batch=config.max_batch_size,
        preferred_batch=max(batching.preferred_batch_size, default=0),
        delay_us=batching.max_queue_delay_microseconds,
        lanes=number("lanes", DEFAULT_LANES),
        device=config.parameters["device"].string_value if "device" in config.parameters else DEVICES[0],
    )


def configured(config: triton.ModelConfig, wanted: Configuration) -> triton.ModelConfig:
    """A copy of a config that runs as wanted; what a search does not vary stays as it is."""
    changed = triton.ModelConfig()
    changed.CopyFrom(config)
    changed.max_batch_size = wanted.max_batch
    del changed.dynamic_batching.preferred_batch_size[:]
    if wanted.preferred_batch:
        changed.dynamic_batching.preferred_batch_size.append(wanted.preferred_batch)
    changed.dynamic_batching.max_queue_delay_microseconds = wanted.delay_us
    for name, value in (
        ("engine", wanted.engine),
        ("intra_op_threads", wanted.threads),
        ("workers", wanted.workers),
        ("lanes", wanted.lanes),
        ("device", wanted.device),
    ):
        changed.parameters[name].string_value = str(value)
    return changed


def write_config(variant: Path, config: triton.ModelConfig) -> None:
    """Replaces a variant's config.pbtxt in one step: a reader sees the old one or the new one, whole.

    Raises:
        ConfigurationError: it cannot be written.
    """
    path, aside = variant / CONFIG_FILE, variant / f".{CONFIG_FILE}.{os.getpid()}"
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text_format.MessageToString(config))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise ConfigurationError(f"{path}: {error.strerror}") from error


def simplest(configuration: Configuration) -> Configuration:
    """The same without what has no effect: a preferred batch means nothing when nobody waits for it, nor a device that
    the engine does not know."""
    preferred = configuration.preferred_batch if configuration.delay_us else 0
    knows = configuration.device in available_devices(configuration.engine)
    return replace(configuration, preferred_batch=preferred, device=configuration.device if knows else DEVICES[0])
