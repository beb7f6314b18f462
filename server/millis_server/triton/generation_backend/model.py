"""Triton's Python-based backend `millis_generation`: text from language models, streamed.

It is decoupled: `execute` only hands requests to the thread that steps the engine (decoding/loop.py), and responses go
out as tokens come. Its tensors are those of Triton's vLLM backend, so that one client can drive both: `text_input`,
`stream`, `sampling_parameters` (JSON; the names and defaults of vLLM's SamplingParams) in, `text_output` and what the
`return_*` flags ask for out. Beside these it takes `prompt_token_ids` instead of a text and gives `token_ids`, and it
has sessions (decoding/sessions.py), in which a gateway gets the texts of all of its callers together.

This folder is loaded by Triton's stub process, not by the gateway, and depends on numpy, tokenizers and the engine.
The config's parameters: `engine` and those of `GeneratorOptions` (decoding/generator.py).
"""

import gc
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from millis_server.triton.generation_backend.decoding.generator import (
        GENERATORS,
        GeneratorOptions,
        InvalidRequest,
        load_generator,
    )
    from millis_server.triton.generation_backend.decoding.loop import Loop
    from millis_server.triton.generation_backend.decoding.parameters import number_input, read_request, text_input
    from millis_server.triton.generation_backend.decoding.responses import FINAL, Refused, Responses, Stream, failure
    from millis_server.triton.generation_backend.decoding.sessions import SessionOutlet, Sessions
else:
    from decoding.generator import GENERATORS, GeneratorOptions, InvalidRequest, load_generator
    from decoding.loop import Loop
    from decoding.parameters import number_input, read_request, text_input
    from decoding.responses import FINAL, Refused, Responses, Stream, failure
    from decoding.sessions import SessionOutlet, Sessions


class TritonPythonModel:
    """One version of one model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model; an exception here makes Triton refuse the version with its message."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        generation = json.loads((folder / "manifest.json").read_text("utf-8"))["generation"]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        options = _options(parameters, tuple(generation["eos_ids"]))
        generator = load_generator(_text(parameters, "engine", GENERATORS[0]), folder, options)
        self._sessions = Sessions()
        self._loop = Loop(generator, self._sessions, pb_utils.Logger.log_error)
        gc.freeze()  # what was imported stays, and no collection need walk it while somebody waits

    def execute(self, requests: list[Any]) -> None:
        """Takes requests in; one that cannot be read fails alone."""
        taken: list[Any] = []
        receivers = [found for request in requests if (found := self._receiver(request, taken)) is not None]
        if receivers:
            self._loop.submit(receivers)
        # Last, because it takes a while: the engine need not wait for it.
        for sender in taken:
            sender.send(flags=FINAL)

    def _receiver(self, request: Any, taken: list[Any]) -> Stream | Refused | None:
        """What a request asks to be made; None when it asks for nothing, or cannot be read.

        Args:
            request: Triton's.
            taken: gets the sender of a request whose answers go out through a session.
        """
        sender = request.get_response_sender()
        try:
            name = text_input(request, "session")
            if not name:
                asked = read_request(request, self._tokenizer)
                return Stream(Responses(sender, asked, self._tokenizer), asked, self._tokenizer)
            number, cancel = number_input(request, "number"), number_input(request, "cancel")
            if number is None and cancel is None:
                self._sessions.open(name, sender)
                return None
            receiver = self._of_session(request, name, number, cancel)
        except Exception as error:  # one that cannot be read fails alone, whatever is wrong with it
            failure(sender, error)
            return None
        taken.append(sender)
        return receiver

    def _of_session(self, request: Any, name: str, number: int | None, cancel: int | None) -> Stream | Refused | None:
        session = self._sessions.get(name)
        if session is None:
            raise InvalidRequest(f"session: there is none of the name {name!r}")
        if cancel is not None:
            session.cancel(cancel)
            return None
        assert number is not None, "one of the two was given. This is a bug."
        outlet = SessionOutlet(session, number)
        try:
            asked = read_request(request, self._tokenizer)
        except Exception as error:  # it is told through the session, like all that becomes of its texts
            return Refused(outlet, error)
        return Stream(outlet, asked, self._tokenizer)

    def finalize(self) -> None:
        """Ends the thread of the engine."""
        self._loop.stop()


def _options(parameters: dict[str, dict[str, str]], eos: tuple[int, ...]) -> GeneratorOptions:
    standard = GeneratorOptions()
    return GeneratorOptions(
        threads=_count(parameters, "threads", standard.threads),
        device=_text(parameters, "device", standard.device),
        max_streams=_count(parameters, "max_streams", standard.max_streams),
        cache_tokens=_count(parameters, "cache_tokens", standard.cache_tokens),
        max_batched_tokens=_count(parameters, "max_batched_tokens", standard.max_batched_tokens),
        kv_cache_precision=_text(parameters, "kv_cache_precision", standard.kv_cache_precision),
        prefix_caching=_text(parameters, "prefix_caching", "true") == "true",
        prompt_lookup=_count(parameters, "prompt_lookup", standard.prompt_lookup, lowest=0),
        draft=_text(parameters, "draft", standard.draft),
        cuda_graphs=_switch(parameters, "cuda_graphs"),
        eos=eos,
    )


def _count(parameters: dict[str, dict[str, str]], name: str, default: int, lowest: int = 1) -> int:
    text = _text(parameters, name, str(default))
    if not text.isdecimal() or int(text) < lowest:
        raise ValueError(f"parameter {name} must be a whole number of at least {lowest}, not {text!r}")
    return int(text)


def _switch(parameters: dict[str, dict[str, str]], name: str) -> bool | None:
    """None for one that is left out."""
    text = _text(parameters, name, "")
    if text not in ("", "true", "false"):
        raise ValueError(f"parameter {name} must be true, false or left out, not {text!r}")
    return text == "true" if text else None


def _text(parameters: dict[str, dict[str, str]], name: str, default: str) -> str:
    return parameters.get(name, {}).get("string_value", default)
