"""Events of a generation as messages of GenerateText."""

from __future__ import annotations

from millis.v1 import inference_pb2 as inference
from millis.v1 import types_pb2 as types
from millis_server.generation import Event, Finished, Started
from millis_server.response_info import duration, served_by
from millis_server.routing import Choice
from millis_server.triton.protocols import Chunk

FINISH_REASONS = {"stop": inference.FINISH_REASON_STOP, "length": inference.FINISH_REASON_LENGTH}


def message(event: Event, client_request_id: str) -> inference.GenerateTextResponse:
    """The message that tells an event."""
    if isinstance(event, Chunk):
        return inference.GenerateTextResponse(
            delta=inference.GenerationDelta(
                index=event.sequence, text=event.text, token_ids=event.tokens, logprobs=event.logprobs
            )
        )
    if isinstance(event, Started):
        info = _info(event.choice, client_request_id, event.prompt_tokens)
        return inference.GenerateTextResponse(started=inference.GenerationStarted(info=info))
    return inference.GenerateTextResponse(finished=_finished(event, client_request_id))


def _finished(event: Finished, client_request_id: str) -> inference.GenerationFinished:
    info = _info(event.choice, client_request_id, event.prompt_tokens)
    info.usage.generated_tokens = sum(event.tokens)
    timing = inference.GenerationTiming(
        queue=duration(event.queue), time_to_first_token=duration(event.first), total=duration(event.total)
    )
    if event.per_token is not None:
        timing.time_per_token.CopyFrom(duration(event.per_token))
    return inference.GenerationFinished(
        completions=[
            inference.Completion(index=index, finish_reason=FINISH_REASONS[reason], tokens=tokens)
            for index, (reason, tokens) in enumerate(zip(event.finishes, event.tokens, strict=True))
        ],
        info=info,
        timing=timing,
    )


def _info(choice: Choice, client_request_id: str, prompt_tokens: int) -> types.ResponseInfo:
    return types.ResponseInfo(
        client_request_id=client_request_id,
        served_by=served_by(choice),
        usage=types.Usage(inputs=1, tokens=prompt_tokens),
        cache_status=types.CACHE_STATUS_DISABLED,
    )
