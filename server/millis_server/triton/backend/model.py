"""Triton's Python-based backend `millis`: one for all models, so that a model folder holds only artefacts.

Triton hands `execute` what its dynamic batcher has gathered. Requests may differ in length
(`allow_ragged_batch`): their rows are taken out of their padding, regrouped by length and run in as few engine
calls as waste little (microbatch.py).

Batches run side by side on `workers` threads of one process instead of on several instances: Triton gives each
instance a process of its own with its own copy of the weights, and on a small machine the copies push each
other out of the processor's cache (measured: benchmarks/RESULTS.md). The engine releases the interpreter lock
while it computes.

This folder is loaded by Triton's stub process, not by the gateway, and depends on numpy and the engine only.
"""

import json
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from engine import Engine, OnnxRuntimeEngine
from microbatch import run_unpadded
from numpy.typing import NDArray


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph; an exception here makes Triton refuse the version with its message."""
        parameters = json.loads(args["model_config"])["parameters"]
        threads = _count(parameters, "intra_op_threads")
        workers = _count(parameters, "workers")
        folder = Path(args["model_repository"]) / args["model_version"]
        self._engine: Engine = OnnxRuntimeEngine(folder / "model.onnx", threads)
        self._batches: SimpleQueue[list[tuple[Any, dict[str, NDArray[np.int64]]]] | None] = SimpleQueue()
        self._idle = threading.Semaphore(workers)
        self._workers = [threading.Thread(target=self._work, name=f"worker-{n}") for n in range(workers)]
        for worker in self._workers:
            worker.start()

    def execute(self, requests: list[Any]) -> None:
        """Hands a dynamic batch to a worker, and returns as soon as the next batch would find one idle.

        Until then Triton goes on gathering: returning earlier would make small batches out of a full queue.
        """
        batch = []
        for request in requests:
            sender = request.get_response_sender()
            try:
                batch.append((sender, self._read(request)))
            except ValueError as error:
                _send(sender, _failure(error))
        if batch:
            self._idle.acquire()
            self._batches.put(batch)
            # A reference kept here would keep the requests, and Triton's memory for them, until the next call.
            del batch, request, sender
            self._idle.acquire()
            self._idle.release()

    def finalize(self) -> None:
        """Lets the workers finish what they have."""
        for _ in self._workers:
            self._batches.put(None)
        for worker in self._workers:
            worker.join()

    def _work(self) -> None:
        while (batch := self._batches.get()) is not None:
            try:
                outputs = run_unpadded(self._engine, [feeds for _, feeds in batch])
            except Exception as error:  # whatever the engine raises must reach its callers, not end the worker
                responses = [_failure(error)] * len(batch)
            else:
                responses = [
                    pb_utils.InferenceResponse([pb_utils.Tensor(self._engine.output, output)]) for output in outputs
                ]
            self._idle.release()
            for (sender, _), response in zip(batch, responses, strict=True):
                _send(sender, response)
            del batch, responses, sender, response

    def _read(self, request: object) -> dict[str, NDArray[np.int64]]:
        feeds = {}
        for name in self._engine.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is None:
                raise ValueError(f"input {name} is missing")
            feeds[name] = tensor.as_numpy()
        shapes = {feed.shape for feed in feeds.values()}
        if len(shapes) != 1:
            raise ValueError(f"inputs differ in shape: {sorted(shapes)}")
        return feeds


def _count(parameters: dict[str, dict[str, str]], name: str) -> int:
    """A number of threads from the config; one when it is silent, never one for each core of the host."""
    text = parameters.get(name, {}).get("string_value", "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"parameter {name} must be a whole number of at least 1, not {text!r}")
    return int(text)


def _send(sender: Any, response: object) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _failure(error: Exception) -> object:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
