"""`millis generate`: what it prints, what it asks for, and how it ends."""

import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from millis.testing import FakeError, FakeGateway, generated
from millis.v1 import inference_pb2 as pb
from tests.client.conftest import Run
from tests.client.test_cli_program import start


def endless(request: pb.GenerateTextRequest) -> Iterator[pb.GenerateTextResponse]:
    started, delta, _ = generated("on\n")
    yield started
    while True:
        yield delta


def test_the_text_is_printed_and_its_line_ended(run: Run) -> None:
    assert run("generate", "one  two\n three") == (0, "one  two\n three\n", "")


def test_answers_are_a_blank_line_apart(run: Run) -> None:
    assert run("generate", "a b", "c", "-n", "2") == (0, "a b\n\na b\n\nc\n\nc\n", "")


def test_json_is_a_line_for_each_answer(run: Run) -> None:
    code, out, err = run("generate", "a b c", "-n", "2", "--max-tokens", "2", "--json", "--model", "m")
    answers = [json.loads(line) for line in out.splitlines()]
    info = answers[0]["info"]
    timing = {"queue_s": 0.0, "time_to_first_token_s": 0.001, "time_per_token_s": 0.001, "total_s": 0.002}
    assert answers == [
        {
            "prompt": "a b c",
            "text": "a b ",
            "index": index,
            "finish_reason": "length",
            "tokens": 2,
            "timing": timing,
            "info": info,
        }
        for index in range(2)
    ]
    assert (info["served_by"]["model"], info["usage"]["generated_tokens"], code, err) == ("m", 4, 0, "")


def test_options_reach_the_request(run: Run, gateway: FakeGateway) -> None:
    options = "--model m --model-version 2 --variant int4 --max-tokens 5 --temperature 0.5 --top-p 0.75 --top-k 40"
    more = ["--seed", "7", "--stop", "x y", "--stop", "z", "-n", "2", "--choice", "yes", "--choice", "no"]
    code, _, _ = run("generate", "t", *options.split(), *more)
    expected = pb.GenerateTextRequest(
        prompt="t",
        model="m",
        version="2",
        max_tokens=5,
        sampling=pb.Sampling(temperature=0.5, top_p=0.75, top_k=40, seed=7),
        stop=["x y", "z"],
        n=2,
        choices=pb.Choices(texts=["yes", "no"]),
    )
    expected.options.slo.pin_variant = "int4"
    left = gateway.requests[0].time_left
    assert (code, gateway.requests[0].message) == (0, expected)
    assert left is not None and 100 < left < 121


def test_a_timeout_is_the_limit(run: Run, gateway: FakeGateway) -> None:
    run("generate", "t", "--timeout", "5")
    run("classify", "t")
    limits = [request.time_left for request in gateway.requests]
    assert limits[0] is not None and limits[0] < 6
    assert limits[1] is not None and 20 < limits[1] < 31


@pytest.mark.parametrize("arguments", [["--chat", "--system", "be brief"], ["--system", "be brief"]])
def test_a_system_message_makes_a_chat(run: Run, gateway: FakeGateway, arguments: list[str]) -> None:
    run("generate", "hi", *arguments)
    assert gateway.requests[0].message == pb.GenerateTextRequest(
        chat=pb.Chat(
            messages=[
                pb.ChatMessage(role=pb.CHAT_ROLE_SYSTEM, content="be brief"),
                pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi"),
            ]
        )
    )


def test_chat_takes_the_text_as_a_users_message(run: Run, gateway: FakeGateway) -> None:
    run("generate", "hi", "--chat")
    message = pb.ChatMessage(role=pb.CHAT_ROLE_USER, content="hi")
    assert gateway.requests[0].message == pb.GenerateTextRequest(chat=pb.Chat(messages=[message]))


def test_guides_reach_the_request(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text('{"type": "string"}', encoding="utf-8")
    run("generate", "t", "--json-schema", str(file))
    run("generate", "t", "--regex", "a+")
    assert [request.message for request in gateway.requests] == [
        pb.GenerateTextRequest(prompt="t", json_schema='{"type": "string"}'),
        pb.GenerateTextRequest(prompt="t", regex="a+"),
    ]


def test_prompts_come_from_a_file(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "one\\ntwo"}\n{"text": "three"}\n', encoding="utf-8")
    assert run("generate", "--file", str(file)) == (0, "one\ntwo\n\nthree\n", "")
    assert [request.message.prompt for request in gateway.requests] == ["one\ntwo", "three"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate"], "millis: give texts, or --file FILE\n"),
        (
            ["generate", "t", "--json-schema", "no-such-file"],
            "millis: --json-schema: no-such-file: No such file or directory\n",
        ),
        (
            ["generate", "t", "--regex", "a", "--choice", "b"],
            "millis generate: argument --choice: not allowed with argument --regex (see millis generate --help)\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Run, arguments: list[str], message: str) -> None:
    assert run(*arguments) == (2, "", message)


def test_an_error_before_the_text_prints_nothing_else(run: Run, gateway: FakeGateway) -> None:
    gateway.script("GenerateText", FakeError(grpc.StatusCode.NOT_FOUND, "no such model"))
    assert run("generate", "t") == (1, "", "millis: no such model\n")


def test_an_error_in_the_middle_leaves_what_came(run: Run, gateway: FakeGateway) -> None:
    error = FakeError(grpc.StatusCode.INTERNAL, "the engine died")
    gateway.script("GenerateText", [*generated("half", " a text")[:2], error])
    assert run("generate", "t") == (1, "half\n", "millis: the engine died\n")


def test_a_terminal_gets_a_summary_and_no_control_characters(
    run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    gateway.script("GenerateText", generated("a\x1b[2J", "\n\tb"), generated("word"))
    assert run("generate", "t") == (
        0,
        "a\\x1b[2J\n\tb\n",
        "2 tokens (stop), the first after 1.0 ms, then 1000.0 a second\n",
    )
    assert run("generate", "t") == (0, "word\n", "1 tokens (stop), the first after 1.0 ms\n")


def test_the_program_prints_each_delta_as_it_comes(gateway: FakeGateway) -> None:
    go_on = threading.Event()

    def paused(request: pb.GenerateTextRequest) -> Iterator[pb.GenerateTextResponse]:
        messages = generated("first\n", "second")
        yield from messages[:2]
        go_on.wait(30)
        yield from messages[2:]

    gateway.script("GenerateText", paused)
    process = start("generate", "t", MILLIS_TARGET=gateway.target)
    assert process.stdout is not None
    first = process.stdout.readline()
    go_on.set()
    rest, err = process.communicate(timeout=60)
    assert (first, rest, err, process.returncode) == ("first\n", "second\n", "", 0)


def test_ctrl_c_ends_the_program_and_the_call(gateway: FakeGateway) -> None:
    gateway.script("GenerateText", endless)
    process = start("generate", "t", MILLIS_TARGET=gateway.target)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert gateway.requests[0].cancelled.wait(30)


def test_a_reader_that_leaves_ends_the_call(gateway: FakeGateway) -> None:
    gateway.script("GenerateText", endless)
    process = start("generate", "t", MILLIS_TARGET=gateway.target)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()
    assert gateway.requests[0].cancelled.wait(30)
