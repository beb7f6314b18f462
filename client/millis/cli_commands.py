"""One function per command: read the texts, call the gateway, print."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from millis._channel import TlsConfig
from millis.catalog import Model
from millis.cli_input import InputError, add_text_arguments, read_texts
from millis.cli_output import print_json, print_model, print_table, with_info
from millis.client import Client
from millis.options import CallOptions, TagOptions

Commands = Any  # argparse's own type of a sub-command collection is private
Parents = Sequence[argparse.ArgumentParser]
Answer = tuple[dict[str, Any], list[list[str]]]
"""One answer as JSON, and as rows of the table."""
Answers = Callable[[Client, argparse.Namespace], Iterator[Answer]]
C = TypeVar("C")

CHUNK = 256
"""Texts in one call of a file: large enough to keep the gateway busy, small enough for steady output."""


def open_client(kind: Callable[..., C], options: argparse.Namespace) -> C:
    """A client of either twin, as the options say.

    Raises:
        InputError: the target has no port, or the file of an option cannot be read or used.
    """
    try:
        key = _read("--api-key-file", options.api_key_file)
        api_key = None if key is None else key.decode().strip()
        return kind(options.target, timeout=options.timeout, tls=_tls(options), api_key=api_key)
    except ValueError as error:
        raise InputError(str(error)) from error


def _tls(options: argparse.Namespace) -> TlsConfig | bool:
    authorities = _read("--tls-ca", options.tls_ca)
    certificate = _read("--tls-certificate", options.tls_certificate)
    key = _read("--tls-key", options.tls_key)
    if authorities is certificate is key is None:
        return bool(options.tls)
    if (certificate is None) != (key is None):
        raise InputError("--tls-certificate and --tls-key go together, and only one is given")
    return TlsConfig(root_certificates=authorities, private_key=key, certificate_chain=certificate)


def _read(option: str, path: str | None) -> bytes | None:
    """What the file of an option holds; None where the option is not given."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{option}: {path}: {error.strerror}") from error


def model_options(options: argparse.Namespace) -> CallOptions:
    """The options that say which model answers."""
    return {
        "model": options.model,
        "version": options.model_version,
        "variant": options.variant,
        "latency_target": options.latency_target,
        "min_quality": options.min_quality,
    }


def call_options(options: argparse.Namespace) -> CallOptions:
    """The options of every inference command that takes texts and returns results."""
    return {**model_options(options), "truncation": options.truncation, "cache": options.cache}


def add_inference_commands(commands: Commands, parents: Parents) -> None:
    """Adds classify, tag, embed, rank and tokenize."""

    def command(name: str, header: Sequence[str], answers: Answers, help_: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(name, parents=parents, help=help_, description=help_)
        parser.set_defaults(run=partial(_run, header, answers))
        return parser

    parser = command("classify", ["label", "score", "text"], classify, "label texts")
    add_text_arguments(parser, "texts", "texts to label")
    parser.add_argument("--top-k", type=int, metavar="N", help="most labels for each text; 0 for all")
    parser.add_argument("--min-score", type=float, metavar="SCORE", help="lowest score of a label, 0 to 1")

    parser = command("tag", ["label", "score", "start", "end", "entity", "text"], tag, "find entities in texts")
    add_text_arguments(parser, "texts", "texts to read")
    parser.add_argument("--aggregation", choices=["first", "average", "max", "simple", "none"])
    parser.add_argument("--min-score", type=float, metavar="SCORE", help="lowest score of an entity, 0 to 1")
    parser.add_argument("--window-overlap", type=int, metavar="TOKENS", help="shared by windows of a long text")
    parser.add_argument("--offset-unit", choices=["code_point", "utf8_byte", "utf16_code_unit"])

    parser = command("embed", ["dimensions", "first values", "text"], embed, "turn texts into vectors")
    add_text_arguments(parser, "texts", "texts to embed")
    parser.add_argument("--dimensions", type=int, metavar="N", help="leading dimensions to keep")
    parser.add_argument("--normalize", action=argparse.BooleanOptionalAction, help="scale vectors to length 1")
    parser.add_argument("--encoding", choices=["float32", "float16", "int8", "binary"], help="how vectors travel")

    parser = command("rank", ["score", "index", "document"], rank, "order documents by how well they answer a query")
    parser.add_argument("query", help="what is looked for")
    add_text_arguments(parser, "documents", "documents to rank")
    parser.add_argument("--top-k", type=int, metavar="N", help="most documents to print")

    parser = command("tokenize", ["count", "tokens"], tokenize, "show how a model reads texts")
    add_text_arguments(parser, "texts", "texts to tokenize")
    parser.add_argument("--special-tokens", action=argparse.BooleanOptionalAction, help="add tokens such as [CLS]")


def _run(header: Sequence[str], answers: Answers, options: argparse.Namespace) -> int:
    with open_client(Client, options) as client:
        if options.json:
            for value, _ in answers(client, options):
                print_json(value)
        else:
            print_table(header, [row for _, rows in answers(client, options) for row in rows])
    return 0


def classify(client: Client, options: argparse.Namespace) -> Iterator[Answer]:
    """`millis classify`: a row for each label of a text."""
    for texts in _chunks(read_texts(options.texts, options.file)):
        results = client.classify(texts, top_k=options.top_k, min_score=options.min_score, **call_options(options))
        for text, result in zip(texts, results, strict=True):
            labels = [asdict(label) for label in result.labels]
            value = {"text": text, "label": result.label, "score": result.score, "labels": labels}
            rows = [[label.name, f"{label.score:.4f}", text] for label in result.labels]
            yield with_info(value, result.info), rows or [["-", "-", text]]


def tag(client: Client, options: argparse.Namespace) -> Iterator[Answer]:
    """`millis tag`: a row for each entity."""
    wishes: TagOptions = {
        "aggregation": options.aggregation,
        "min_score": options.min_score,
        "window_overlap": options.window_overlap,
        "offset_unit": options.offset_unit,
        **call_options(options),  # type: ignore[typeddict-item]  # it names no offset unit
    }
    for texts in _chunks(read_texts(options.texts, options.file)):
        for text, result in zip(texts, client.tag(texts, **wishes), strict=True):
            entities = [asdict(entity) for entity in result.entities]
            rows = [
                [each.label, f"{each.score:.4f}", str(each.span.start), str(each.span.end), each.text, text]
                for each in result.entities
            ]
            value = {"text": text, "entities": entities, "windows": result.windows}
            yield with_info(value, result.info), rows or [["-", "-", "-", "-", "-", text]]


def embed(client: Client, options: argparse.Namespace) -> Iterator[Answer]:
    """`millis embed`: a row for each vector, with its first four values."""
    for texts in _chunks(read_texts(options.texts, options.file)):
        results = client.embed(
            texts,
            dimensions=options.dimensions,
            normalize=options.normalize,
            encoding=options.encoding,
            **call_options(options),
        )
        for text, result in zip(texts, results, strict=True):
            values = result.values
            first = " ".join(f"{value:+.4f}" for value in values[:4]) + (" …" if len(values) > 4 else "")
            value = {"text": text, "values": values, "encoding": result.encoding}
            yield with_info(value, result.info), [[str(result.dimensions), first, text]]


def rank(client: Client, options: argparse.Namespace) -> Iterator[Answer]:
    """`millis rank`: a row for each document, best first."""
    documents = read_texts(options.documents, options.file)
    ranking = client.rank(options.query, documents, top_k=options.top_k, **call_options(options))
    for each in ranking:
        value = {**asdict(each), "score_type": ranking.score_type}
        yield with_info(value, ranking.info), [[f"{each.score:.4f}", str(each.index), each.text]]


def tokenize(client: Client, options: argparse.Namespace) -> Iterator[Answer]:
    """`millis tokenize`: a row for each text."""
    for texts in _chunks(read_texts(options.texts, options.file)):
        results = client.tokenize(texts, add_special_tokens=options.special_tokens, **call_options(options))
        for text, result in zip(texts, results, strict=True):
            tokens = [asdict(token) for token in result.tokens]
            value = {"text": text, "tokens": tokens, "max_tokens": result.max_tokens}
            pieces = " ".join(token.text for token in result.tokens)
            yield with_info(value, result.info), [[str(len(tokens)), pieces]]


def add_models_command(commands: Commands, parents: Parents) -> None:
    """Adds models with its sub-commands."""
    help_ = "list, load, unload and watch the models of a gateway"
    actions = commands.add_parser("models", help=help_, description=help_).add_subparsers(
        metavar="ACTION", required=True
    )
    parser = actions.add_parser("list", parents=parents, help="all models")
    tasks = ["text-classification", "token-classification", "embedding", "cross-encoder", "text-generation"]
    parser.add_argument("--task", choices=tasks, help="only models of this task")
    parser.set_defaults(run=list_models)
    for name, help_ in (
        ("get", "all about one model, also why a version was refused"),
        ("load", "bring the newest good versions of a model into service"),
        ("unload", "take a model out of service"),
    ):
        parser = actions.add_parser(name, parents=parents, help=help_)
        parser.add_argument("name", help="logical model name")
        parser.set_defaults(run=one_model, action=name)
    parser = actions.add_parser("watch", parents=parents, help="print each change until Ctrl-C")
    parser.add_argument("name", nargs="?", help="only this model")
    parser.set_defaults(run=watch_models)


def list_models(options: argparse.Namespace) -> int:
    """`millis models list`."""
    with open_client(Client, options) as client:
        models = client.models.list(options.task)
    if options.json:
        for model in models:
            print_json(asdict(model))
    else:
        print_table(["model", "task", "variants", "default"], map(_model_row, models))
    return 0


def one_model(options: argparse.Namespace) -> int:
    """`millis models get`, `load` and `unload`."""
    with open_client(Client, options) as client:
        model = getattr(client.models, options.action)(options.name)
    if options.json:
        print_json(asdict(model))
    else:
        print_model(model)
    return 0


def watch_models(options: argparse.Namespace) -> int:
    """`millis models watch`."""
    with open_client(Client, options) as client:
        for change in client.models.watch(options.name):
            if options.json:
                print_json(asdict(change))
            else:
                row = _model_row(change.model) if change.model else [change.name, "removed"]
                print("  ".join(row), flush=True)
    return 0


def _model_row(model: Model) -> list[str]:
    variants = ", ".join(f"{each.name} {each.version or '-'} {each.state}" for each in model.variants)
    return [model.name, model.task, variants, "yes" if model.is_default else ""]


def _chunks(texts: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(texts), CHUNK):
        yield texts[start : start + CHUNK]
