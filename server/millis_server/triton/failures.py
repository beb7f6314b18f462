"""Gives failures of generations their names; Triton tells them as texts, without a code."""

from __future__ import annotations

import grpc
import grpc.aio

from millis_server.errors import BackendFault, InvalidField, MillisError, ModelUnavailable
from millis_server.tasks.generation import GUIDE_FIELDS, TextGeneration
from millis_server.triton.client import StubDied

DIED = "the model's process stopped answering and is being started again"


def named(message: str, task: TextGeneration | None = None) -> MillisError:
    """The error that a message of Triton's means.

    Args:
        message: as it came.
        task: that failed; None when the message is about no task in particular.
    """
    text = " ".join(message.split("\n\nAt:")[0].split())[:500]
    if "InvalidRequest: " in text:
        name, _, problem = text.partition("InvalidRequest: ")[2].partition(": ")
        if name == "session":
            return ModelUnavailable(f"the session at the model's process was lost: {problem}")
        if name == "guided_decoding" and task is not None and task.guide is not None:
            name = GUIDE_FIELDS[task.guide[0]]
        return InvalidField(name, problem)
    if "Stub process" in text or "EngineFailed: " in text:
        return StubDied(DIED)
    if "is not at ready state" in text or "unknown model" in text:
        return ModelUnavailable(f"Triton cannot answer for this model now: {text}")
    return BackendFault(f"Triton: {text}")


def failed_call(error: grpc.aio.AioRpcError, task: TextGeneration | None = None) -> MillisError:
    """The error that a failed call to Triton means."""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return ModelUnavailable(f"Triton does not answer: {error.details()}")
    return named(error.details() or error.code().name, task)
