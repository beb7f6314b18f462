"""Short names for the enums of the protos: `end` for TRUNCATION_STRATEGY_END."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any, Protocol

from millis.errors import InvalidArgumentError
from millis.v1 import inference_pb2, models_pb2, types_pb2


class _Enum(Protocol):
    def items(self) -> Any: ...


class EnumNames:
    """Both directions between the numbers of one proto enum and their short names."""

    def __init__(self, enum: _Enum, prefix: str, separator: str = "_") -> None:
        items: ItemsView[str, int] = enum.items()
        self._names = {number: name.removeprefix(prefix).lower().replace("_", separator) for name, number in items}
        self._numbers = {name: number for number, name in self._names.items() if number != 0}

    def name(self, number: int) -> str:
        """Short name of a number; `unknown_7` for one that only a newer gateway knows."""
        return self._names.get(number) or f"unknown_{number}"

    def number(self, field: str, name: object) -> Any:
        """Number of a short name.

        Raises:
            InvalidArgumentError: there is no such name; the message lists those there are.
        """
        if not isinstance(name, str):
            raise TypeError(f"{field} must be a str, not {type(name).__name__}")
        try:
            return self._numbers[name]
        except KeyError:
            choices = ", ".join(self._numbers)
            raise InvalidArgumentError.for_field(field, f"{name!r} is not one of {choices}") from None


AGGREGATIONS = EnumNames(inference_pb2.AggregationStrategy, "AGGREGATION_STRATEGY_")
CACHE_POLICIES = EnumNames(types_pb2.CachePolicy, "CACHE_POLICY_")
CACHE_STATUSES = EnumNames(types_pb2.CacheStatus, "CACHE_STATUS_")
CHAT_ROLES = EnumNames(inference_pb2.ChatRole, "CHAT_ROLE_")
ENCODINGS = EnumNames(inference_pb2.EmbeddingEncoding, "EMBEDDING_ENCODING_")
FINISH_REASONS = EnumNames(inference_pb2.FinishReason, "FINISH_REASON_")
OFFSET_UNITS = EnumNames(types_pb2.OffsetUnit, "OFFSET_UNIT_")
SCORE_TYPES = EnumNames(inference_pb2.ScoreType, "SCORE_TYPE_")
TASKS = EnumNames(types_pb2.Task, "TASK_", separator="-")
TRUNCATIONS = EnumNames(types_pb2.TruncationStrategy, "TRUNCATION_STRATEGY_")
VARIANT_STATES = EnumNames(models_pb2.VariantState, "VARIANT_STATE_")
