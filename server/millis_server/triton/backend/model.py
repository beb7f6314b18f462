"""Triton's Python-based backend `millis`: one for all models, so that a model folder holds only artefacts.

Triton hands `execute` what its dynamic batcher has gathered. Requests may differ in length
(`allow_ragged_batch`): their rows are taken out of their padding, regrouped by length and run in as few engine
calls as waste little (microbatch.py).

A batch is spread over `workers` threads of this one process. Several instances would be several processes, each
with its own copy of the weights, and on a small machine the copies push each other out of the processor's cache
(docs/adr/0004 has the measurement). The engine releases the interpreter lock while it computes. A lone text is
run right here, without a change of thread.

What padding is left goes back with the answer, as INT32 [texts, 1] in the output `padding`: the tokens that the
engine computed beside each text's own. It is left out where there was none, so a lone text pays nothing for it. A
model with early exits (cascade.py) also says in `layers`, likewise, how many layers each text went through.

This folder is loaded by Triton's stub process, not by the gateway, and depends on numpy and the engine only.
The config's parameters: `engine` and `device` (engine.py), `intra_op_threads`, `workers`, and `max_padding`
(microbatch.py; a share of the real tokens, or `unlimited`).
"""

import gc
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from cascade import load_stages
from engine import DEFAULT_ENGINES, DEVICES, Engine, EngineOptions, load_engine
from microbatch import MAX_PADDING, run_unpadded
from numpy.typing import NDArray

ALL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the graph; an exception here makes Triton refuse the version with its message."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._shares = _count(parameters, "workers")
        self._max_padding = _max_padding(parameters)
        folder = Path(args["model_repository"]) / args["model_version"]
        # Of the version and not of the config, which serves two versions and is kept when another one is published.
        precision = json.loads((folder / "manifest.json").read_bytes()).get("precision", "f32")
        options = EngineOptions(
            threads=_count(parameters, "intra_op_threads"),
            calls=self._shares,
            device=_text(parameters, "device", DEVICES[0]),
            precision=precision,
        )
        name = _text(parameters, "engine", DEFAULT_ENGINES[precision])

        def load(graph: Path) -> Engine:
            return load_engine(name, graph, options)

        self._stages = load_stages(folder, load)
        # The thread that Triton calls is a worker too.
        self._pool = ThreadPoolExecutor(self._shares - 1) if self._shares > 1 else None
        gc.freeze()  # what was imported stays, and no collection need walk it while somebody waits

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers a dynamic batch; a request that cannot be read fails alone."""
        responses: list[Any] = [None] * len(requests)
        batch = []
        for index, request in enumerate(requests):
            try:
                batch.append((index, self._read(request)))
            except ValueError as error:
                responses[index] = _failure(error)
        try:
            answers = run_unpadded(
                self._stages, [feeds for _, feeds in batch], self._shares, self._pool, self._max_padding
            )
        except Exception as error:  # whatever the engine raises must reach its callers, not end the process
            for index, _ in batch:
                responses[index] = _failure(error)
            return responses
        name = self._stages[0].engine.outputs[0]
        for (index, _), answer in zip(batch, answers, strict=True):
            tensors = [pb_utils.Tensor(name, answer.output)]
            if answer.layers is not None:
                tensors.append(pb_utils.Tensor("layers", answer.layers))
            if answer.padding is not None:
                tensors.append(pb_utils.Tensor("padding", answer.padding))
            responses[index] = pb_utils.InferenceResponse(tensors)
        return responses

    def finalize(self) -> None:
        """Ends the workers."""
        if self._pool is not None:
            self._pool.shutdown()

    def _read(self, request: object) -> dict[str, NDArray[np.int64]]:
        """Inputs by name; a mask or token types that are left out say nothing (see the gateway's tensors.py)."""
        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in ALL_INPUTS}
        if given["input_ids"] is None:
            raise ValueError("input input_ids is missing")
        feeds = {name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None}
        ids = feeds["input_ids"]
        if any(feed.shape != ids.shape for feed in feeds.values()):
            raise ValueError(f"inputs differ in shape: {sorted({feed.shape for feed in feeds.values()})}")
        feeds.setdefault("attention_mask", np.ones_like(ids))
        feeds.setdefault("token_type_ids", np.zeros_like(ids))
        return {name: feeds[name] for name in self._stages[0].engine.inputs}


def _count(parameters: dict[str, dict[str, str]], name: str) -> int:
    """A number of threads from the config; one when it is silent, never one for each core of the host."""
    text = _text(parameters, name, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"parameter {name} must be a whole number of at least 1, not {text!r}")
    return int(text)


def _max_padding(parameters: dict[str, dict[str, str]]) -> float | None:
    text = _text(parameters, "max_padding", str(MAX_PADDING))
    if text == "unlimited":
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise ValueError(f"parameter max_padding must be a number of at least 0, or unlimited, not {text!r}")
    return share


def _text(parameters: dict[str, dict[str, str]], name: str, default: str) -> str:
    return parameters.get(name, {}).get("string_value", default)


def _failure(error: Exception) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}"))
