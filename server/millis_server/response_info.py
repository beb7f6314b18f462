"""What every response says of how it was made, in protobuf."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from millis.v1 import types_pb2 as types
from millis_server.routing import Choice


def served_by(choice: Choice) -> types.ServedBy:
    """What answered, and why."""
    manifest = choice.served.manifest
    return types.ServedBy(
        model=manifest.model,
        version=choice.served.version,
        variant=manifest.variant,
        degraded=choice.degraded,
        reason=choice.reason,
    )


def duration(seconds: float) -> Duration:
    """Seconds as a Duration, cut to whole nanoseconds."""
    nanos = int(seconds * 1e9)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)
