"""Everything that runs in the gateway's process, put together: Triton, the models, the services and their port."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from millis.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc
from millis_server.access.guard import Guard
from millis_server.access.port import open_port
from millis_server.answering import Around
from millis_server.cache import AnswerCache
from millis_server.catalogue import Catalogue, State
from millis_server.generation import Generations
from millis_server.infer import Inference
from millis_server.model_service import ModelService
from millis_server.observability.metrics import Metrics
from millis_server.prediction import Predictor
from millis_server.reload import Reloader
from millis_server.repository import scan
from millis_server.requests import RequestReader
from millis_server.service import InferenceService
from millis_server.settings import Settings
from millis_server.triton.client import TritonClient
from millis_server.triton.lane import Lane
from millis_server.triton.launcher import EmbeddedTriton, TritonFailed
from millis_server.triton.streams import TritonStreams

LOG = logging.getLogger("millis")
if TYPE_CHECKING:  # OpenTelemetry is an extra
    from millis_server.observability.tracing import Tracing

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
MODELS = models_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name

MAX_DEATHS = 5
DEATHS_SECONDS = 60
"""Triton is started again unless it has died so often in so short a time."""


class StartFailed(RuntimeError):
    """The gateway cannot start; the message is one line."""


class Gateway:
    """Everything that runs in the gateway's process.

    Args:
        settings: of the gateway.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._triton = None if settings.triton_url else EmbeddedTriton(settings.model_repository, settings.state_dir)
        url = self._triton.url if self._triton else settings.triton_url
        self._client = TritonClient(url, settings.infer_timeout_seconds, settings.load_timeout_seconds)
        self._streams = TritonStreams(self._triton.grpc_url if self._triton else settings.triton_grpc())
        self.catalogue = Catalogue()
        self._reloader = Reloader(settings, self._client, self._streams, self.catalogue)
        self._cache = AnswerCache(settings.cache_bytes)
        self._predictor = Predictor()
        self._inference = Inference(
            self.catalogue, self._reloader, self._cache, self._predictor, settings.max_pending_inputs
        )
        self._generations = Generations(self.catalogue, self._reloader, self._predictor)
        decisions = (self._inference.decisions, self._generations.decisions)
        self._guard = None if settings.callers is None else Guard(settings.callers)
        self._metrics = Metrics(self.catalogue, self._cache, decisions, lambda: self._inference.pending, self._guard)
        self._tracing = _tracing(settings.otlp_endpoint)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                # Two gateways on one port would share its calls without a word.
                ("grpc.so_reuseport", 0),
            ]
        )
        self._background: list[asyncio.Task[None]] = []
        self.port = 0

    async def start(self) -> None:
        """Returns when the gateway answers.

        Raises:
            StartFailed: the port of the metrics is taken, or no model could be brought into service.
            CannotListen: the port is taken.
            TlsError: the files of certificate and key cannot be used.
            RepositoryError: the model repository cannot be read.
            TritonFailed: Triton could not be started.
        """
        self._add_services()
        settings = self._settings
        self.port = open_port(self._server, settings.host, settings.port, settings.tls())
        if not await asyncio.to_thread(scan, settings.model_repository):
            raise StartFailed(
                f"model repository {settings.model_repository} holds no model; publish one with `millis build`"
            )
        self._serve_metrics()
        await self._start_triton()
        await self._reloader.sync()
        if not self._ready_models():
            raise StartFailed("no model could be brought into service: " + "; ".join(self._problems()))
        await self._set_health()
        self._background = [
            asyncio.create_task(self._reloader.watch()),
            asyncio.create_task(self._follow_catalogue()),
        ]
        if self._guard is not None:
            following = self._guard.follow(settings.repository_poll_seconds)
            self._background.append(asyncio.create_task(following))
        await self._server.start()

    async def run(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set.

        Raises:
            TritonFailed: Triton died and could not be started again.
        """
        stopping = asyncio.create_task(stop.wait())
        watching = asyncio.create_task(self._keep_triton())
        try:
            done, _ = await asyncio.wait({stopping, watching}, return_when=asyncio.FIRST_COMPLETED)
            if watching in done:
                watching.result()
        finally:
            stopping.cancel()
            watching.cancel()

    async def stop(self) -> None:
        """Refuses new work, lets calls under way finish within the drain time, and ends Triton."""
        self._inference.draining = self._generations.draining = True
        await self._health.enter_graceful_shutdown()
        await self._server.stop(self._settings.drain_seconds)
        for task in self._background:
            task.cancel()
        self._client.close()
        await self._streams.close()
        if self._triton is not None:
            await self._triton.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    def _add_services(self) -> None:
        reader = RequestReader(self._settings.max_inputs, self._settings.max_text_bytes)
        around = Around(self._metrics, self._tracing, self._guard)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(
                self._inference,
                self._generations,
                self.catalogue,
                reader,
                self._predictor,
                around,
            ),
            self._server,
        )
        models_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self.catalogue, self._reloader, around), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (INFERENCE, MODELS, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    def _serve_metrics(self) -> None:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        if port == 0:
            return
        try:
            self._metrics.listen(host, port)
        except OSError as error:
            raise StartFailed(
                f"cannot serve metrics on {host}:{port}: {error.strerror}; "
                "--metrics-port (MILLIS_METRICS_PORT) takes another port, or 0 for none"
            ) from None

    async def _start_triton(self) -> None:
        if self._triton is not None:
            await self._triton.start(self._settings.startup_timeout_seconds)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.startup_timeout_seconds):
                while not await self._client.is_ready():
                    await asyncio.sleep(0.2)
                return
        raise StartFailed(
            f"no Triton answers at {self._client.url} within {self._settings.startup_timeout_seconds:g} s"
        )

    async def _keep_triton(self) -> None:
        """Starts Triton again when it dies, unless it keeps dying."""
        deaths: deque[float] = deque(maxlen=MAX_DEATHS)
        failure = ""
        while self._triton is not None:
            await self._triton.wait()
            words = failure or await self._triton.last_words()
            deaths.append(asyncio.get_running_loop().time())
            if len(deaths) == MAX_DEATHS and deaths[-1] - deaths[0] < DEATHS_SECONDS:
                raise TritonFailed(f"Triton died {MAX_DEATHS} times in {DEATHS_SECONDS} s; the last time:\n{words}")
            LOG.error("%s", words)
            failure = ""
            try:
                await self._triton.start(self._settings.startup_timeout_seconds)
            except TritonFailed as error:
                failure = str(error)  # one more death, though it came before it was ready
                continue
            self._reloader.recover_all()
        await asyncio.Event().wait()

    def _ready_models(self) -> list[str]:
        ready = {v.manifest.model for v in self.catalogue.variants.values() if v.state is State.READY}
        return sorted(ready)

    def _problems(self) -> list[str]:
        """Why variants do not answer: of each what was refused, or else how far it came."""
        found = [f"{name}: {reason}" for name, reason in self.catalogue.unreadable.items()]
        for name, variant in self.catalogue.variants.items():
            refusals = [refusal.reason for refusal in variant.refused.values()]
            found += [f"{name}: {reason}" for reason in refusals or [variant.reason or variant.state.value]]
        return sorted(set(found))

    async def _follow_catalogue(self) -> None:
        """Keeps health and cache in step with what takes traffic."""
        with self.catalogue.watch() as changes:
            while True:
                await changes.get()
                await self._set_health()
                current = [variant.current for variant in self.catalogue.variants.values()]
                lanes = [served.lane for served in current if served is not None]
                await self._cache.keep_only([lane for lane in lanes if isinstance(lane, Lane)])

    async def _set_health(self) -> None:
        """Inference serves while a model does; the model service always does, so that it can tell what is wrong."""
        serving = health_pb2.HealthCheckResponse.SERVING
        inference = serving if self._ready_models() else health_pb2.HealthCheckResponse.NOT_SERVING
        await self._health.set("", inference)
        await self._health.set(INFERENCE, inference)
        await self._health.set(MODELS, serving)


def _tracing(endpoint: str) -> Tracing | None:
    """What sends traces to a collector; None where there is none."""
    if not endpoint:
        return None
    from millis_server.observability.tracing import Tracing  # an extra

    return Tracing(endpoint)
