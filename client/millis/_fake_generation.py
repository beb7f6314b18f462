"""The streams of the fake gateway: the words of the prompt come back, one token each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import cycle, islice

from google.protobuf.duration_pb2 import Duration

from millis._fake_answers import response_info, token_id
from millis.v1 import inference_pb2 as pb

_WORD = re.compile(r"\S+\s*")
_MILLISECONDS_PER_TOKEN = 1
_LOGPROB = -0.25


def generate(request: pb.GenerateTextRequest) -> Iterator[pb.GenerateTextResponse]:
    """Answers with the words of the prompt (of the last message, of the token ids), or with the first choice."""
    text = request.choices.texts[0] if request.HasField("choices") else _prompt(request)
    words, reason = _WORD.findall(text), pb.FINISH_REASON_STOP
    if request.ignore_eos and request.max_tokens:
        words = list(islice(cycle(words), request.max_tokens))
        reason = pb.FINISH_REASON_LENGTH
    elif request.HasField("max_tokens") and len(words) > request.max_tokens:
        words = words[: request.max_tokens]
        reason = pb.FINISH_REASON_LENGTH
    whole = "".join(words)
    stops = [place for stop in request.stop if (place := whole.find(stop)) >= 0]
    if stops:
        words, reason = _WORD.findall(whole[: min(stops)]), pb.FINISH_REASON_STOP
    return stream(request, words, reason)


def stream(
    request: pb.GenerateTextRequest, words: Sequence[str], reason: pb.FinishReason.ValueType
) -> Iterator[pb.GenerateTextResponse]:
    """The messages of an answer of these words, or of `n` such answers, which come whole."""
    info = response_info(request.model, request.version, request.options, [_prompt(request)])
    yield pb.GenerateTextResponse(started=pb.GenerationStarted(info=info))
    answers = range(request.n or 1)
    pieces = [[word] for word in words] if len(answers) == 1 else [list(words)]
    for index in answers:
        for piece in pieces:
            yield pb.GenerateTextResponse(delta=_delta(index, piece, logprobs=request.logprobs))
    info.usage.generated_tokens = len(words) * len(answers)
    finished = pb.GenerationFinished(
        completions=[pb.Completion(index=index, finish_reason=reason, tokens=len(words)) for index in answers],
        info=info,
        timing=pb.GenerationTiming(
            queue=Duration(),
            time_to_first_token=_milliseconds(_MILLISECONDS_PER_TOKEN),
            time_per_token=_milliseconds(_MILLISECONDS_PER_TOKEN) if len(words) > 1 else None,
            total=_milliseconds(_MILLISECONDS_PER_TOKEN * len(words)),
        ),
    )
    yield pb.GenerateTextResponse(finished=finished)


def _prompt(request: pb.GenerateTextRequest) -> str:
    if request.HasField("chat"):
        return "".join(message.content for message in request.chat.messages[-1:])
    if request.HasField("token_ids"):
        return " ".join(map(str, request.token_ids.ids))
    return request.prompt


def _delta(index: int, words: Sequence[str], *, logprobs: bool) -> pb.GenerationDelta:
    return pb.GenerationDelta(
        index=index,
        text="".join(words),
        token_ids=[token_id(word.strip()) for word in words],
        logprobs=[_LOGPROB] * len(words) if logprobs else [],
    )


def _milliseconds(count: int) -> Duration:
    return Duration(nanos=count * 1_000_000)
