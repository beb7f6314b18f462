"""The command `millis`: what it takes, and how it ends.

Exit codes: 0 done, 1 the service (or a file) failed, 2 wrong usage, 130 Ctrl-C. An error is one line on stderr.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Never

import millis
from millis import cli_bench, cli_commands, cli_generate
from millis._channel import API_KEY_ENV, DEFAULT_TARGET, DEFAULT_TIMEOUT_S, GENERATE_TIMEOUT_S, TARGET_ENV
from millis.cli_input import InputError
from millis.errors import MillisError

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 128 + signal.SIGINT

_EXTRAS = {
    "serve": ("millis_server.server", "server", "start a gateway (extra: server)"),
    "build": ("millis_pipeline.build", "pipeline", "build and publish a model (extra: pipeline)"),
    "tune": ("millis_pipeline.tune", "pipeline", "find how a model runs best on this machine (extra: pipeline)"),
}
"""Commands of the other extras: module whose `main(argv)` runs them, extra, help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name. Default: those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a text must not end us
    try:
        if arguments and arguments[0] in _EXTRAS:
            return _run_extra(arguments[0], arguments[1:])
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except SystemExit as exit_:  # argparse: --help, --version, usage
        return exit_.code if isinstance(exit_.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # for example `| head`: whoever read us has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except InputError as error:
        return _fail(USAGE, error)
    except (MillisError, OSError) as error:
        return _fail(FAILED, error)


def _fail(code: int, error: Exception) -> int:
    print("millis:", " ".join(str(error).split()), file=sys.stderr)
    return code


def _run_extra(command: str, arguments: list[str]) -> int:
    """Hands over to another package of this distribution, whose dependencies may not be installed."""
    module, extra, _ = _EXTRAS[command]
    try:
        code: int = importlib.import_module(module).main(arguments)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if error.name not in (module.partition(".")[0], module) and missing.startswith("millis"):
            raise  # This is a bug: our own packages lack nothing of ours.
        print(f'millis {command} needs the {extra} extra: pip install "millis[{extra}]"', file=sys.stderr)
        return USAGE
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Never:
        """One line instead of argparse's usage and message."""
        self.exit(USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="millis", description="Language questions answered in milliseconds over gRPC.")
    parser.add_argument("--version", action="version", version=f"millis {millis.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (_, _, help_) in _EXTRAS.items():
        commands.add_parser(name, help=help_)
    connection, model, inputs = _connection_options(DEFAULT_TIMEOUT_S), _model_options(), _input_options()
    cli_commands.add_inference_commands(commands, [connection, model, inputs])
    cli_generate.add_command(commands, [_connection_options(GENERATE_TIMEOUT_S), model])
    cli_commands.add_models_command(commands, [connection])
    cli_bench.add_command(commands, [connection, model, inputs])
    return parser


def _connection_options(timeout_s: float) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("connection and output")
    group.add_argument(
        "--target", help=f"address of the gateway, host:port (default: ${TARGET_ENV}, else {DEFAULT_TARGET})"
    )
    group.add_argument(
        "--timeout",
        type=_positive_float,
        default=timeout_s,
        metavar="SECONDS",
        help="limit of each call (default: %(default)g)",
    )
    group.add_argument("--tls", action="store_true", help="encrypt the connection")
    group.add_argument("--tls-ca", metavar="FILE", help="PEM file of the authorities to trust; implies --tls")
    group.add_argument("--tls-certificate", metavar="FILE", help="PEM file of your certificate; implies --tls")
    group.add_argument("--tls-key", metavar="FILE", help="PEM file of its key")
    # Not the key itself: every user of the machine can read the arguments of a process.
    group.add_argument(
        "--api-key-file", metavar="FILE", help=f"file with the key to call with (default: ${API_KEY_ENV})"
    )
    group.add_argument("--json", action="store_true", help="JSON lines instead of text for people")
    return options


def _model_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("model")
    group.add_argument("--model", help="logical model name (default: the default model of the task)")
    group.add_argument("--model-version", metavar="VERSION", help="version that must answer")
    group.add_argument("--variant", help="variant that must answer, for example int8")
    group.add_argument(
        "--latency-target", type=_positive_float, metavar="SECONDS", help="time in which you hope for the answer"
    )
    group.add_argument("--min-quality", type=float, metavar="SCORE", help="lowest measured quality, 0 to 1")
    return options


def _input_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("model")  # argparse joins groups of one name
    group.add_argument(
        "--cache",
        choices=["default", "bypass", "refresh"],
        help="whether the answer may come from the gateway's cache; --json shows where it came from",
    )
    group.add_argument("--truncation", choices=["end", "start", "error"], help="what happens to a long text")
    return options


def _positive_float(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
