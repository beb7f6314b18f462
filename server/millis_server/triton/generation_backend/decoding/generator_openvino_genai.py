"""OpenVINO GenAI as an engine: continuous batching on the CPU, with paged memory, prefix caching and guided output.

Its pipeline reads long prompts in parts between the tokens of other texts (chunked prefill, Agrawal et al. 2023,
"SARATHI") and keeps the memory of tokens in pages (Kwon et al. 2023, "Efficient Memory Management for Large Language
Model Serving with PagedAttention").
"""

from __future__ import annotations

import re
from functools import lru_cache
from math import ceil
from pathlib import Path
from random import getrandbits
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

from .generator import GenerationFailed, GeneratorOptions, Guide, InvalidRequest, Piece, Request
from .guide_check import GuideCheck

BLOCK_TOKENS = 32
"""Tokens in one page of the pipeline's memory on a CPU."""

LOOKUP_NGRAM = 3
"""Longest run of tokens that prompt lookup searches the prompt for."""

DRAFT_TOKENS = 3
"""Tokens that a draft model guesses in each step."""

NOT_FINISHED = genai.GenerationFinishReason.NONE
FINISHES = {genai.GenerationFinishReason.STOP: "stop", genai.GenerationFinishReason.LENGTH: "length"}


class OpenVinoGenerator:
    """See `generator.Generator`.

    Args:
        folder: of the version: `openvino_model.xml`, and for guided output `openvino_tokenizer.xml`.
        options: how it may use the machine.
    """

    def __init__(self, folder: Path, options: GeneratorOptions) -> None:
        if options.device != "cpu":
            raise ValueError(f"parameter device: openvino_genai runs on cpu here, not {options.device!r}")
        self._options = options
        self._pipeline = genai.ContinuousBatchingPipeline(
            str(folder), _scheduler(options), "CPU", _properties(folder, options)
        )
        self._handles: dict[int, tuple[Any, Request]] = {}
        self._failed: list[GenerationFailed] = []
        """Told by the next step: this one has pieces of others to hand out."""
        guided = (folder / "openvino_tokenizer.xml").is_file()
        self._guides = GuideCheck(folder) if guided else None

    @property
    def busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._failed or self._pipeline.has_non_finished_requests())

    def add(self, number: int, request: Request) -> None:
        """Takes a request in."""
        _refuse_what_it_cannot(request, self._options)
        config = self._config(request)
        prompt = ov.Tensor(np.asarray([request.prompt], np.int64))
        try:
            handle = self._pipeline.add_request(number, prompt, config)
        except RuntimeError as error:
            raise InvalidRequest(f"sampling_parameters: {_last_line(error)}") from error
        self._handles[number] = handle, request

    def step(self) -> list[Piece]:
        """Makes about one token for each text."""
        if self._failed:
            raise self._failed.pop()
        self._pipeline.step()
        pieces: list[Piece] = []
        for number, (handle, request) in list(self._handles.items()):
            found = self._read(number, handle, request) if handle.can_read() else []
            pieces += found
            if found and all(piece.finish for piece in found):
                del self._handles[number]
            elif handle.get_status() == genai.GenerationStatus.IGNORED:
                del self._handles[number]
                self._failed.append(GenerationFailed(number, "the engine has no memory left for it"))
        return pieces

    def cancel(self, number: int) -> bool:
        """Drops a request."""
        entry = self._handles.pop(number, None)
        if entry is None:
            return False
        entry[0].cancel()
        return True

    def close(self) -> None:
        """Nothing runs beside the steps."""

    def _read(self, number: int, handle: Any, request: Request) -> list[Piece]:
        # One text comes token by token, several come whole when all of them are ready.
        outputs = handle.read()
        ordered = [outputs[key] for key in sorted(outputs)]
        if request.beams:
            ordered.sort(key=lambda output: -output.score)
        return [self._piece(number, place, output, request) for place, output in enumerate(ordered[: request.n])]

    def _piece(self, number: int, sequence: int, output: Any, request: Request) -> Piece:
        tokens = output.generated_ids
        made = len(tokens)
        finish = "" if output.finish_reason == NOT_FINISHED else FINISHES[output.finish_reason]
        if finish == "stop" and tokens and tokens[-1] in self._options.eos:
            tokens = tokens[:-1]
        logprobs = output.generated_log_probs[: len(tokens)] if request.logprobs else ()
        return Piece(number, sequence, tokens, logprobs, made, finish)

    def _config(self, request: Request) -> Any:
        options = self._options
        wanted: dict[str, Any] = {
            "eos_token_id": options.eos[0],
            "stop_token_ids": set(options.eos),
            "ignore_eos": request.ignore_eos,
            "max_new_tokens": request.max_tokens,
            "logprobs": int(request.logprobs),
            "repetition_penalty": request.repetition_penalty,
            "presence_penalty": request.presence_penalty,
            "frequency_penalty": request.frequency_penalty,
            "num_return_sequences": request.n,
        }
        if request.beams:
            wanted["num_beams"] = request.beams
        elif request.temperature > 0:
            wanted |= {"do_sample": True, "temperature": request.temperature, "top_p": request.top_p}
            wanted |= {"min_p": request.min_p, "top_k": request.top_k} if request.top_k else {"min_p": request.min_p}
            # The pipeline's own default is the same for every request.
            wanted["rng_seed"] = getrandbits(32) if request.seed is None else request.seed
        if request.guide is not None:
            wanted["structured_output_config"] = self._guide(request.guide)
        if options.prompt_lookup:
            wanted |= {"num_assistant_tokens": options.prompt_lookup, "max_ngram_size": LOOKUP_NGRAM}
        elif options.draft:
            wanted["num_assistant_tokens"] = DRAFT_TOKENS
        return genai.GenerationConfig(**wanted)

    def _guide(self, guide: Guide) -> Any:
        if self._guides is None:
            raise InvalidRequest("guided_decoding: this version was published without a tokenizer for guided output")
        wanted = _structured(guide)
        if problem := self._guides.problem(wanted):
            raise InvalidRequest(f"guided_decoding: {problem}")
        return genai.StructuredOutputConfig(**{wanted[0]: wanted[1]})


def load(folder: Path, options: GeneratorOptions) -> OpenVinoGenerator:
    """See `generator.load_generator`."""
    return OpenVinoGenerator(folder, options)


@lru_cache(maxsize=256)
def _structured(guide: Guide) -> tuple[str, str]:
    """The field of StructuredOutputConfig that a guide becomes, with its value."""
    if guide.kind == "json":
        return "json_schema", str(guide.rule)
    if guide.kind == "regex":
        return "regex", str(guide.rule)
    return "regex", "(" + "|".join(re.escape(choice) for choice in guide.rule) + ")"


def _scheduler(options: GeneratorOptions) -> Any:
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = options.max_batched_tokens
    scheduler.max_num_seqs = options.max_streams
    # Each text may leave its last page nearly empty.
    scheduler.num_kv_blocks = ceil(options.cache_tokens / BLOCK_TOKENS) + options.max_streams
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = options.prefix_caching
    return scheduler


def _properties(folder: Path, options: GeneratorOptions) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.threads,
        "KV_CACHE_PRECISION": options.kv_cache_precision,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    if options.prompt_lookup:
        properties["prompt_lookup"] = True
    if options.draft:
        properties["draft_model"] = genai.draft_model(str(folder / options.draft), "CPU")
    return properties


def _refuse_what_it_cannot(request: Request, options: GeneratorOptions) -> None:
    """Refuses what the pipeline would refuse without a field's name, drop without a word, or fail at in a step, which
    ends all texts under way."""
    if request.guide is not None and request.ignore_eos:
        raise InvalidRequest("ignore_eos: is set, and so is a guide, which says where the text ends; use one of them")
    if request.temperature > 0 and request.min_p >= 1:
        raise InvalidRequest(f"sampling.min_p: is {request.min_p:g}, it must be less than 1")
    guesser = "a draft model" if options.draft else "prompt lookup" if options.prompt_lookup else ""
    for name, value in (("beams", request.beams), ("n", request.n)):
        if guesser and value > 1:
            raise InvalidRequest(f"{name}: is {value}; this variant guesses tokens with {guesser}, so the limit is 1")
    if options.draft and request.temperature > 0:
        # Drawn tokens and those of the draft get out of step within a few texts, and step() raises for ever.
        raise InvalidRequest(
            f"sampling.temperature: is {request.temperature:g}; this variant guesses tokens with a draft model, "
            "so it must be 0"
        )


def _last_line(error: Exception) -> str:
    """What the library says at the end of a message that begins with places in its own source."""
    return str(error).strip().splitlines()[-1]
