"""Transformers as an engine: continuous batching on PyTorch with paged memory, for CUDA without vLLM.

It needs nothing but torch and transformers and runs whatever architecture they have; on a CPU it is several times
slower than OpenVINO and serves as the reference. Its manager steps in a thread of its own, so a step here waits for
what that thread has made. Greedy texts and drawn ones have a manager each: drawing is a setting of the whole manager.
Both put what they have made into one queue, so that neither waits for the other.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from .generator import GenerationFailed, GeneratorOptions, InvalidRequest, Piece, Request

PAGE_TOKENS = 32
"""Tokens in one page of a manager's memory on a CPU."""

CUDA_PAGE_TOKENS = 256
"""The same on CUDA, where transformers changes to FlashAttention if that is installed: its version 2 takes multiples of
256 only."""

WAIT_SECONDS = 0.05
"""Longest wait of one step; requests and cancels are looked at between steps."""

STOP_SECONDS = 5.0


class TransformersGenerator:
    """See `generator.Generator`.

    Args:
        folder: of the version: a Hugging Face checkpoint. It computes in the precision that the weights are stored in.
        options: how it may use the machine.
    """

    def __init__(self, folder: Path, options: GeneratorOptions) -> None:
        if options.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("parameter device is 'cuda', and PyTorch finds no CUDA device here")
        torch.set_num_threads(options.threads)
        self._options = options
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
        self._model: Any = model.to(options.device).eval()
        self._managers: dict[bool, Any] = {}
        self._made: Queue[Any] = Queue()
        """What the managers have made."""
        self._under_way: dict[str, tuple[int, Request, int]] = {}
        """By the manager's name of a request: our number, the request, and how many of its tokens were handed out."""
        self._failed: list[GenerationFailed] = []
        """Told by the next step: this one has pieces of others to hand out."""
        if options.device != "cpu":
            # Both take their memory and capture their graphs before anybody waits for a text.
            for draws in (False, True):
                self._manager(draws)

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._failed or self._under_way)

    def add(self, number: int, request: Request) -> None:
        """Takes a request in."""
        _refuse_what_it_has_not(request)
        draws = request.temperature > 0
        wishes: dict[str, Any] = {}
        if draws:
            top_k = request.top_k or self._model.config.vocab_size
            wishes = {"temperature": float(request.temperature), "top_p": float(request.top_p), "top_k": top_k}
        name = f"{int(draws)}-{number}"
        # A manager that has failed takes nothing in and says no more than None: the next step finds it stopped.
        self._manager(draws).add_request(
            list(request.prompt),
            request_id=name,
            max_new_tokens=request.max_tokens,
            streaming=True,
            eos_token_id=-1 if request.ignore_eos else list(self._options.eos),
            **wishes,
        )
        self._under_way[name] = number, request, 0

    def step(self) -> list[Piece]:
        """Hands out what the managers have made; waits for something when there is nothing yet.

        Raises:
            RuntimeError: a manager has failed; what was asked of it never comes.
        """
        if self._failed:
            raise self._failed.pop()
        outputs = self._outputs()
        # Before they are read: a manager that fails ends each of its texts as if that one alone had failed.
        for manager in self._managers.values():
            _check(manager)
        pieces = [piece for output in outputs for piece in self._read(output)]
        return sorted(pieces, key=lambda piece: piece.number)

    def cancel(self, number: int) -> bool:
        """Drops a request."""
        names = [name for name, (known, _, _) in self._under_way.items() if known == number]
        for name in names:
            del self._under_way[name]
            self._managers[name.startswith("1")].cancel_request(name)
        return bool(names)

    def close(self) -> None:
        """Ends the managers' threads, which would keep the process alive."""
        for manager in self._managers.values():
            manager.stop(block=True, timeout=STOP_SECONDS, hard_stop=True)
        self._managers.clear()

    def _outputs(self) -> list[Any]:
        found = []
        try:
            found.append(self._made.get(timeout=WAIT_SECONDS))
            while True:
                found.append(self._made.get_nowait())
        except Empty:
            return found

    def _read(self, output: Any) -> list[Piece]:
        entry = self._under_way.get(output.request_id)
        if entry is None:
            return []
        number, request, known = entry
        if output.error is not None:
            del self._under_way[output.request_id]
            self._failed.append(GenerationFailed(number, str(output.error)))
            return []
        made = output.generated_tokens
        tokens, logprobs = made[known:], output.logprobs[known:] if request.logprobs else []
        finish = ""
        if output.is_finished():
            del self._under_way[output.request_id]
            ended = bool(made) and made[-1] in self._options.eos and not request.ignore_eos
            finish = "stop" if ended else "length"
            if ended:
                tokens = tokens[:-1]
        else:
            self._under_way[output.request_id] = number, request, len(made)
        if len(made) == known and not finish:
            return []
        return [Piece(number, 0, list(tokens), list(logprobs[: len(tokens)]), len(made) - known, finish)]

    def _manager(self, draws: bool) -> Any:
        """The manager for greedy texts, or for drawn ones; on a CPU each takes its memory when it is first needed."""
        if draws not in self._managers:
            # Processors exist for what differs from its default here; each request brings its own values.
            rules = {"temperature": 0.9, "top_p": 0.9, "top_k": 50} if draws else {}
            eos = list(self._options.eos)
            manager = self._model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=draws, max_new_tokens=1, eos_token_id=eos, **rules),
                continuous_batching_config=_batching(self._options, draws),
            )
            manager.output_router.output_queue = self._made
            # Nothing where there are no graphs to capture.
            manager.warmup()
            manager.start()
            self._managers[draws] = manager
        return self._managers[draws]


def load(folder: Path, options: GeneratorOptions) -> TransformersGenerator:
    """See `generator.load_generator`."""
    return TransformersGenerator(folder, options)


def _batching(options: GeneratorOptions, draws: bool) -> ContinuousBatchingConfig:
    page = PAGE_TOKENS if options.device == "cpu" else CUDA_PAGE_TOKENS
    return ContinuousBatchingConfig(
        page_size=page,
        # Each text may leave its last page nearly empty.
        num_blocks=ceil(options.cache_tokens / page) + options.max_streams,
        max_batch_tokens=options.max_batched_tokens,
        max_requests_per_batch=options.max_streams,
        allow_block_sharing=options.prefix_caching,
        # None leaves it to transformers, which captures graphs where no attention mask has to be padded for them.
        use_cuda_graph=options.cuda_graphs,
        return_logprobs=True,
        per_request_processors=draws,
    )


def _check(manager: Any) -> None:
    """Raises when a manager has failed, or is about to end because it has."""
    status = manager.background_thread_status
    reason = status.can_accept_new_requests()
    if reason is not None or not manager.is_running():
        raise RuntimeError(f"transformers' manager stopped: {status.fatal_error or reason or 'its thread has ended'}")


def _refuse_what_it_has_not(request: Request) -> None:
    asked = {
        "n": request.n > 1,
        "beams": request.beams > 0,
        "guided_decoding": request.guide is not None,
        "sampling.seed": request.seed is not None and request.temperature > 0,
        "sampling.min_p": request.min_p != 0,
        "sampling.repetition_penalty": request.repetition_penalty != 1,
        "sampling.presence_penalty": request.presence_penalty != 0,
        "sampling.frequency_penalty": request.frequency_penalty != 0,
    }
    for name, is_set in asked.items():
        if is_set:
            raise InvalidRequest(f"{name}: is set, and the engine transformers has no such rule for a single request")
    if request.logprobs and request.temperature > 0 and not _as_the_model_says(request):
        raise InvalidRequest(
            "logprobs: is set, and sampling changes probabilities; the engine transformers tells only the changed ones"
        )


def _as_the_model_says(request: Request) -> bool:
    """Whether tokens are drawn with the probabilities that the model gives them."""
    return (request.temperature, request.top_p, request.top_k) == (1, 1, 0)
