"""`millis generate`: text that goes on from a prompt, printed as it is made."""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

from millis.cli_commands import Commands, Parents, model_options, open_client
from millis.cli_input import InputError, add_text_arguments, read_texts
from millis.cli_output import print_json, visible, with_info
from millis.client import Client
from millis.generation import Generated, Message, Prompt, Sampling
from millis.generation_stream import GenerationStream
from millis.options import GenerateOptions

_SAMPLING = ("temperature", "top_p", "top_k", "seed")


def add_command(commands: Commands, parents: Parents) -> None:
    """Adds generate."""
    help_ = "go on from a prompt, or answer a message"
    more = f"{help_}; the text is printed as it is made, a blank line between two answers"
    parser = commands.add_parser("generate", parents=parents, help=help_, description=more)
    add_text_arguments(parser, "prompts", "text to go on from")
    parser.add_argument("--chat", action="store_true", help="take the text as a user's message, by the chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message before it; implies --chat")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens to generate (default: the model's)")
    parser.add_argument("--stop", action="append", metavar="TEXT", help="text at which to end; repeat for several")
    parser.add_argument("-n", type=int, metavar="N", help="number of answers to draw (default: 1)")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, metavar="T", help="0.01 to 10 (default: 0, the most likely token)")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens of this probability")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from so many most likely tokens")
    group.add_argument("--seed", type=int, help="the same seed draws the same tokens")
    guides = parser.add_argument_group("what the text must obey").add_mutually_exclusive_group()
    guides.add_argument("--json-schema", metavar="FILE", help="file with a JSON Schema")
    guides.add_argument("--regex", help="regular expression that the whole text matches")
    guides.add_argument(
        "--choice", action="append", metavar="TEXT", help="one of the possible answers; repeat for the others"
    )
    parser.set_defaults(run=generate)


def generate(options: argparse.Namespace) -> int:
    """`millis generate`: one prompt after the other; a JSON line for each answer, at its end."""
    prompts = read_texts(options.prompts, options.file)
    wishes = _wishes(options)
    with open_client(Client, options) as client:
        for number, prompt in enumerate(prompts):
            with client.generate(_asked(prompt, options), **wishes) as stream:
                if options.json:
                    _print_json_lines(prompt, stream)
                else:
                    sys.stdout.write("\n" if number else "")
                    _print_text(stream)
    return 0


def _wishes(options: argparse.Namespace) -> GenerateOptions:
    sampling = {name: value for name in _SAMPLING if (value := getattr(options, name)) is not None}
    return {
        **model_options(options),  # type: ignore[typeddict-item]  # it names nothing that generate does not take
        "sampling": Sampling(**sampling) if sampling else None,
        "max_tokens": options.max_tokens,
        "stop": options.stop,
        "n": options.n,
        "json_schema": None if options.json_schema is None else _read_schema(options.json_schema),
        "regex": options.regex,
        "choices": options.choice,
        "timeout": options.timeout,
    }


def _read_schema(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"--json-schema: {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--json-schema: {file}: byte {error.start} is not UTF-8") from error


def _asked(prompt: str, options: argparse.Namespace) -> Prompt:
    if options.system is not None:
        return [Message("system", options.system), Message("user", prompt)]
    return [Message("user", prompt)] if options.chat else prompt


def _print_json_lines(prompt: str, stream: GenerationStream) -> None:
    texts: defaultdict[int, str] = defaultdict(str)
    for delta in stream:
        texts[delta.index] += delta.text
    finished = _finished(stream)
    for completion in finished.completions:
        value = {"prompt": prompt, "text": texts[completion.index], **asdict(completion)}
        print_json(with_info({**value, "timing": asdict(finished.timing)}, finished.info))


def _print_text(stream: GenerationStream) -> None:
    """The text as it comes. Its last line is ended also when the stream is not: an error or a prompt may follow."""
    terminal = sys.stdout.isatty()
    index: int | None = None
    try:
        for delta in stream:
            sys.stdout.write("" if index in (None, delta.index) else "\n\n")
            index = delta.index
            sys.stdout.write(visible(delta.text, keep="\n\t") if terminal else delta.text)
            sys.stdout.flush()
    finally:
        sys.stdout.write("" if index is None else "\n")
    sys.stdout.flush()
    if sys.stderr.isatty():
        print(_summary(_finished(stream)), file=sys.stderr)


def _summary(finished: Generated) -> str:
    timing = finished.timing
    ends = ", ".join(sorted({each.finish_reason for each in finished.completions}))
    tokens = finished.info.usage.generated_tokens
    summary = f"{tokens} tokens ({ends}), the first after {timing.time_to_first_token_s * 1000:.1f} ms"
    return summary + (f", then {1 / timing.time_per_token_s:.1f} a second" if timing.time_per_token_s else "")


def _finished(stream: GenerationStream) -> Generated:
    assert stream.finished is not None  # a stream without its last message has raised an error
    return stream.finished
