"""InferenceService: protobuf in, protobuf out. It knows no tensor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

from millis.v1 import inference_pb2 as inference
from millis.v1 import inference_pb2_grpc
from millis.v1 import types_pb2 as types
from millis_server import requests
from millis_server.access.guard import caller
from millis_server.answering import Around, Context, answering, answering_stream
from millis_server.cache import Status
from millis_server.catalogue import Catalogue
from millis_server.generation import Finished, Generations
from millis_server.generation_messages import message
from millis_server.infer import Answer, Inference, is_long
from millis_server.manifest import Manifest
from millis_server.offsets import OffsetUnit
from millis_server.prediction import Predictor
from millis_server.requests import InferenceRequest, RequestReader
from millis_server.response_info import duration, served_by
from millis_server.routing import Choice, Demand, choose
from millis_server.tasks import Task
from millis_server.tasks.embedding import Encoding
from millis_server.tasks.generation import TextGeneration
from millis_server.tasks.token_classification import TaggedText
from millis_server.token_messages import tagged_text, tokenization
from millis_server.triton.protocols import Chunk

Result = TypeVar("Result")

CACHE_STATUSES: dict[Status, types.CacheStatus.ValueType] = {
    "disabled": types.CACHE_STATUS_DISABLED,
    "hit": types.CACHE_STATUS_HIT,
    "miss": types.CACHE_STATUS_MISS,
    "partial": types.CACHE_STATUS_PARTIAL,
    "bypassed": types.CACHE_STATUS_BYPASSED,
}
ENCODINGS: dict[Encoding, inference.EmbeddingEncoding.ValueType] = {
    "float32": inference.EMBEDDING_ENCODING_FLOAT32,
    "float16": inference.EMBEDDING_ENCODING_FLOAT16,
    "int8": inference.EMBEDDING_ENCODING_INT8,
    "binary": inference.EMBEDDING_ENCODING_BINARY,
}


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """Answers the inference RPCs.

    Args:
        path: of a request.
        generations: path of a GenerateText.
        catalogue: the models.
        reader: checks requests.
        predictor: of the time that versions will take.
        around: what the RPCs have around them.
    """

    def __init__(
        self,
        path: Inference,
        generations: Generations,
        catalogue: Catalogue,
        reader: RequestReader,
        predictor: Predictor,
        around: Around,
    ) -> None:
        self._path = path
        self._generations = generations
        self._catalogue = catalogue
        self._reader = reader
        self._predictor = predictor
        self.around = around

    @answering
    async def ClassifyText(  # noqa: N802  # names of RPCs are given by the proto
        self, request: inference.ClassifyTextRequest, context: Context
    ) -> inference.ClassifyTextResponse:
        """Labels of texts."""
        task = self._reader.classify_text(request)
        answer = await self._run(task, request, context)
        return inference.ClassifyTextResponse(
            results=[
                inference.TextClassification(
                    labels=[inference.LabelScore(label=label.label, score=label.score) for label in labels]
                )
                for labels in answer.results
            ],
            info=_info(request, answer, task.inputs),
        )

    @answering
    async def ClassifyTokens(  # noqa: N802
        self, request: inference.ClassifyTokensRequest, context: Context
    ) -> inference.ClassifyTokensResponse:
        """Entities of texts."""
        task = self._reader.classify_tokens(request)
        unit = requests.offset_unit(request)
        answer = await self._run(task, request, context)
        respond = partial(_tagged_texts, request, answer, unit)
        if request.include_tokens and is_long(Demand(task.inputs, task.characters)):
            return await asyncio.to_thread(respond)
        return respond()

    @answering
    async def EmbedText(  # noqa: N802
        self, request: inference.EmbedTextRequest, context: Context
    ) -> inference.EmbedTextResponse:
        """Vectors of texts."""
        task = self._reader.embed_text(request)
        answer = await self._run(task, request, context)
        return inference.EmbedTextResponse(
            results=[inference.Embedding(data=vector.data, scale=vector.scale) for vector in answer.results],
            dimensions=task.kept_dimensions(answer.choice.served.manifest),
            encoding=ENCODINGS[task.encoding],
            info=_info(request, answer, task.inputs),
        )

    @answering
    async def RankTexts(  # noqa: N802
        self, request: inference.RankTextsRequest, context: Context
    ) -> inference.RankTextsResponse:
        """Documents in the order of relevance."""
        task = self._reader.rank_texts(request)
        answer = await self._run(task, request, context)
        return inference.RankTextsResponse(
            results=[
                inference.RankedText(
                    index=ranked.index,
                    score=ranked.score,
                    text=request.documents[ranked.index] if request.return_documents else "",
                )
                for ranked in answer.results
            ],
            score_type=_score_type(answer.choice.served.manifest),
            info=_info(request, answer, task.inputs),
        )

    @answering
    async def Tokenize(  # noqa: N802
        self, request: inference.TokenizeRequest, context: Context
    ) -> inference.TokenizeResponse:
        """Tokens of texts."""
        texts = self._reader.texts("texts", request.texts)
        unit = requests.offset_unit(request)
        special = request.add_special_tokens if request.HasField("add_special_tokens") else True
        model = requests.model(request) or self._catalogue.only_model("Tokenize")
        if (account := caller()) is not None:
            account.permit(model)
        # No variant is better or slower at this, so the deadline plays no part in the choice.
        wishes = requests.wishes(request, None)
        demand = Demand(len(texts), sum(map(len, texts)))
        with self._path.admitted(demand.inputs):
            choice = choose(self._catalogue.variants_of(model), self._predictor, demand, wishes)
            respond = partial(_tokenized, request, texts, choice, special, unit)
            return await asyncio.to_thread(respond) if is_long(demand) else respond()

    @answering_stream
    async def GenerateText(  # noqa: N802
        self, request: inference.GenerateTextRequest, context: Context
    ) -> AsyncGenerator[inference.GenerateTextResponse, None]:
        """Text that goes on from a prompt."""
        task = self._reader.generate_text(request)
        wishes = requests.wishes(request, context.time_remaining())
        model, account = self._permitted(request, task), caller()
        async with aclosing(self._generations.run(task, model, wishes)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    self._finished(event)
                elif account is not None:
                    account.spend(event.made if isinstance(event, Chunk) else event.prompt_tokens)
                yield message(event, request.options.client_request_id)

    async def _run(self, task: Task[Result], request: InferenceRequest, context: Context) -> Answer[Result]:
        wishes = requests.wishes(request, context.time_remaining())
        model = self._permitted(request, task)
        answer = await self._path.run(task, model, wishes, requests.cache_policy(request))
        if answer.cache != "hit":
            manifest = answer.choice.served.manifest
            self.around.metrics.computed(manifest.model, manifest.variant, answer.times.queue, answer.times.infer)
        if self.around.tracing is not None:
            self.around.tracing.computed(answer.times, answer.tokens)
        if (account := caller()) is not None:
            account.spend(answer.tokens)
        return answer

    def _permitted(self, request: InferenceRequest, task: Task[Any] | TextGeneration) -> str:
        """The model that a request names, or the default one by its name where not everybody may ask it."""
        model, account = requests.model(request), caller()
        if account is not None and account.models is not None:
            model = model or self._catalogue.resolve("", task.name, task.answered_by)[0].manifest.model
            account.permit(model)
        return model

    def _finished(self, generation: Finished) -> None:
        self.around.metrics.generated(generation)
        if self.around.tracing is not None:
            self.around.tracing.generated(generation)


def _info(request: InferenceRequest, answer: Answer[Any], inputs: int) -> types.ResponseInfo:
    choice = answer.choice
    info = types.ResponseInfo(
        client_request_id=request.options.client_request_id,
        served_by=served_by(choice),
        usage=types.Usage(
            inputs=inputs, tokens=answer.tokens, padded_tokens=answer.padded_tokens, layers=answer.layers
        ),
        cache_status=CACHE_STATUSES[answer.cache],
        truncated_inputs=answer.truncated,
    )
    if request.options.include_timing:
        times = answer.times
        info.timing.CopyFrom(
            types.Timing(
                total=duration(times.total),
                tokenize=duration(times.tokenize),
                queue=duration(times.queue),
                infer=duration(times.infer),
                postprocess=duration(times.postprocess),
            )
        )
    return info


def _tagged_texts(
    request: inference.ClassifyTokensRequest, answer: Answer[TaggedText], unit: OffsetUnit
) -> inference.ClassifyTokensResponse:
    given = bool(request.word_lists)
    results = [tagged_text(text, unit, given) for text in answer.results]
    return inference.ClassifyTokensResponse(results=results, info=_info(request, answer, len(results)))


def _tokenized(
    request: inference.TokenizeRequest, texts: Sequence[str], choice: Choice, special: bool, unit: OffsetUnit
) -> inference.TokenizeResponse:
    served = choice.served
    results = [tokenization(served.tokenizer, text, special, unit) for text in texts]
    return inference.TokenizeResponse(
        results=results,
        max_tokens=served.manifest.max_tokens,
        info=types.ResponseInfo(
            client_request_id=request.options.client_request_id,
            served_by=types.ServedBy(
                model=served.manifest.model,
                version=served.version,
                variant=served.manifest.variant,
                reason=choice.reason,
            ),
            usage=types.Usage(inputs=len(texts), tokens=sum(len(result.tokens) for result in results)),
            cache_status=types.CACHE_STATUS_DISABLED,
        ),
    )


def _score_type(manifest: Manifest) -> inference.ScoreType.ValueType:
    if manifest.task == "embedding":
        return inference.SCORE_TYPE_COSINE
    return inference.SCORE_TYPE_PROBABILITY if manifest.activation == "sigmoid" else inference.SCORE_TYPE_LOGIT
