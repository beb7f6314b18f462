"""The command line: what it prints, and how it ends."""

import io
import json
import os
import struct
import sys
import types
from pathlib import Path
from typing import Any

import grpc
import pytest

import millis
from millis.testing import FakeError, FakeGateway, classified
from millis.v1 import inference_pb2 as pb
from tests.client.conftest import Run


def test_classify_prints_a_table(run: Run, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("refund", "greeting"))
    assert run("classify", "I want my money back", "你好\n再见") == (
        0,
        "LABEL      SCORE  TEXT\nrefund    1.0000  I want my money back\ngreeting  1.0000  你好\\n再见\n",
        "",
    )


def test_classify_prints_json_lines(run: Run, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("greeting"))
    code, out, err = run("classify", "--json", "你好")
    assert (code, err, "你好" in out) == (0, "", True)
    answer = json.loads(out)
    info = answer.pop("info")
    assert answer == {
        "text": "你好",
        "label": "greeting",
        "score": 1.0,
        "labels": [{"name": "greeting", "score": 1.0}],
    }
    assert info == {
        "served_by": {"model": "", "version": "", "variant": "", "degraded": False, "reason": ""},
        "usage": {"inputs": 0, "tokens": 0, "padded_tokens": 0, "layers": 0, "generated_tokens": 0},
        "timing": None,
        "cache": "unspecified",
        "truncated_inputs": [],
        "client_request_id": "",
    }


def test_tag_prints_entities_and_texts_without(run: Run) -> None:
    assert run("tag", "in Paris", "nowhere") == (
        0,
        (
            "LABEL  SCORE   START  END  ENTITY  TEXT\n"
            "NAME   0.7500  3      8    Paris   in Paris\n"
            "-      -       -      -    -       nowhere\n"
        ),
        "",
    )


def test_rank_prints_the_best_document_first(run: Run) -> None:
    assert run("rank", "c d", "a b", "c d", "--top-k", "1") == (0, " SCORE  INDEX  DOCUMENT\n1.0000      1  c d\n", "")


def test_embed_prints_the_first_values_and_all_of_them_as_json(run: Run, gateway: FakeGateway) -> None:
    values = (1.0, -0.5, 0.25, 0.0, 2.0)
    response = pb.EmbedTextResponse(
        results=[pb.Embedding(data=struct.pack("<5f", *values))], dimensions=5, encoding="EMBEDDING_ENCODING_FLOAT32"
    )
    gateway.script("EmbedText", response, response)
    assert run("embed", "t") == (
        0,
        "DIMENSIONS  FIRST VALUES                       TEXT\n         5  +1.0000 -0.5000 +0.2500 +0.0000 …  t\n",
        "",
    )
    code, out, _ = run("embed", "t", "--json")
    assert (code, json.loads(out)["values"]) == (0, list(values))


def test_tokenize_prints_tokens(run: Run) -> None:
    assert run("tokenize", "hi you") == (0, "COUNT  TOKENS\n    4  [CLS] hi you [SEP]\n", "")


def test_options_reach_the_request(run: Run, gateway: FakeGateway) -> None:
    options = "--model m --model-version 2 --variant int8 --min-quality 0.5 --latency-target 0.5 --truncation start"
    code, _, _ = run("classify", "t", *options.split(), "--cache", "refresh", "--top-k", "3", "--timeout", "5")
    request = gateway.requests[0]
    expected = pb.ClassifyTextRequest(texts=["t"], model="m", version="2", top_k=3)
    expected.options.slo.pin_variant = "int8"
    expected.options.slo.min_quality = 0.5
    expected.options.slo.latency_target.nanos = 500_000_000
    expected.options.truncation = 2  # type: ignore[assignment]  # TRUNCATION_STRATEGY_START
    expected.options.cache_policy = 3  # type: ignore[assignment]  # CACHE_POLICY_REFRESH
    assert (code, request.message) == (0, expected)
    assert request.time_left is not None and request.time_left < 6


def test_texts_come_from_a_file_line_by_line(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_bytes("\ufeffone\r\n\n  two  \n三\n".encode())
    assert run("classify", "--file", str(file))[0] == 0
    assert [list(request.message.texts) for request in gateway.requests] == [["one", "  two  ", "三"]]


def test_texts_come_from_json_lines(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "one\\ntwo", "id": 1}\n\n{"text": "\\ud83d\\ude00"}\n', encoding="utf-8")
    assert run("classify", "--file", str(file))[0] == 0
    assert list(gateway.requests[0].message.texts) == ["one\ntwo", "😀"]


def test_texts_come_from_standard_input(run: Run, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo\n")))
    assert run("classify", "--file", "-")[0] == 0
    assert list(gateway.requests[0].message.texts) == ["one", "two"]


def test_a_long_file_goes_in_several_calls(run: Run, gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"text {number}\n" for number in range(600)), encoding="utf-8")
    code, out, _ = run("classify", "--json", "--file", str(file))
    assert [len(request.message.texts) for request in gateway.requests] == [256, 256, 88]
    assert [json.loads(line)["text"] for line in out.splitlines()] == [f"text {number}" for number in range(600)]
    assert code == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.txt", b"fine\nbad \xff\n", "line 2: byte 4 is not UTF-8"),
        ("empty.txt", b"\n\n", "there is no text in it"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": 3}\n', 'line 2: an object with a string field "text" is wanted'),
        ("bad.jsonl", b"[1]\n", 'line 1: an object with a string field "text" is wanted'),
        ("bad.jsonl", b'{"text": "a\\ud83d"}\n', "line 1: lone surrogate U+D83D at offset 1"),
        (
            "bad.jsonl",
            b"{\n",
            "line 1 is not JSON: Expecting property name enclosed in double quotes: line 2 column 1 (char 2)",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_line(
    run: Run, gateway: FakeGateway, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    assert run("classify", "--file", str(file)) == (2, "", f"millis: {file}: {message}\n")
    assert gateway.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "millis: give texts, or --file FILE\n"),
        (["classify", "t", "--file", "f"], "millis: give texts, or --file FILE, not both\n"),
        (["classify", "--file", "no-such-file"], "millis: no-such-file: No such file or directory\n"),
        (
            ["classify", "t", "--target", "host"],
            "millis: target: 'host' does not end in a port; write it like 127.0.0.1:50051\n",
        ),
        (["classify", "t", "--tls-ca", "nope.pem"], "millis: --tls-ca: nope.pem: No such file or directory\n"),
        (["classify", "t", "--api-key-file", "nope"], "millis: --api-key-file: nope: No such file or directory\n"),
        (
            ["classify", "t", "--tls-key", "/dev/null"],
            "millis: --tls-certificate and --tls-key go together, and only one is given\n",
        ),
        (
            ["classify", "t", "--api-key-file", "/dev/null"],
            "millis: api_key: a key is printable ASCII without spaces\n",
        ),
        (
            ["classify", "t", "--timeout", "0"],
            "millis classify: argument --timeout: must be more than 0, got 0 (see millis classify --help)\n",
        ),
        (
            ["models", "get"],
            "millis models get: the following arguments are required: name (see millis models get --help)\n",
        ),
        ([], "millis: the following arguments are required: COMMAND (see millis --help)\n"),
        (
            ["bench", "--concurrency", "0"],
            "millis bench: argument --concurrency: must be at least 1, got 0 (see millis bench --help)\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(run: Run, arguments: list[str], message: str) -> None:
    assert run(*arguments) == (2, "", message)


def test_an_error_of_the_service_is_one_line_and_code_1(run: Run, gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", FakeError(grpc.StatusCode.INVALID_ARGUMENT, "texts[0]:\nblank"))
    assert run("classify", " ") == (1, "", "millis: texts[0]: blank\n")


def test_a_gateway_that_is_not_there_is_one_line_and_code_1(run: Run, gateway: FakeGateway) -> None:
    gateway.stop()
    code, out, err = run("classify", "t")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"millis: the gateway at {gateway.target} cannot be reached: ")


def test_bytes_that_are_no_text_are_refused(run: Run) -> None:
    assert run("classify", os.fsdecode(b"a\xff")) == (
        1,
        "",
        "millis: texts[0]: lone surrogate U+DCFF at offset 1 has no UTF-8 form\n",
    )


def test_models_list_get_unload_and_load(run: Run) -> None:
    assert run("models", "list") == (
        0,
        (
            "MODEL  TASK                 VARIANTS                    DEFAULT\n"
            "fake   text-classification  fp32 1 ready, int8 1 ready  yes\n"
        ),
        "",
    )
    assert run("models", "get", "fake") == (
        0,
        (
            "name:       fake (default)\n"
            "task:       text-classification\n"
            "labels:     negative, neutral, positive\n"
            "max tokens: 128\n"
            "provenance: millis.testing\n"
            "\n"
            "VARIANT         STATE  VERSION  QUALITY  SIZE    REASON\n"
            "fp32            ready        1  -        1.0 MB\n"
            "int8 (default)  ready        1  -        1.0 MB\n"
        ),
        "",
    )
    states = []
    for action in ("unload", "load"):
        code, out, _ = run("models", action, "fake", "--json")
        states.append((code, {variant["state"] for variant in json.loads(out)["variants"]}))
    assert states == [(0, {"unloaded"}), (0, {"ready"})]
    assert run("models", "get", "nope") == (1, "", "millis: model 'nope' is unknown\n")


def test_models_list_can_be_held_to_a_task(run: Run) -> None:
    assert run("models", "list", "--task", "embedding", "--json") == (0, "", "")


@pytest.mark.parametrize(("command", "extra"), [("serve", "server"), ("build", "pipeline")])
def test_a_command_of_a_missing_extra_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, {"serve": "millis_server.server", "build": "millis_pipeline.build"}[command], None)
    assert run(command, "--any", "thing") == (
        2,
        "",
        f'millis {command} needs the {extra} extra: pip install "millis[{extra}]"\n',
    )


@pytest.mark.parametrize(("command", "module"), [("serve", "millis_server.server"), ("build", "millis_pipeline.build")])
def test_a_command_of_an_extra_gets_all_its_arguments(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, module: str
) -> None:
    seen: list[Any] = []
    fake = types.ModuleType(module)
    fake.main = lambda argv: seen.append(argv) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module, fake)
    assert run(command, "--port", "1", "--help") == (3, "", "")
    assert seen == [["--port", "1", "--help"]]


def test_version_and_help(run: Run) -> None:
    assert run("--version") == (0, f"millis {millis.__version__}\n", "")
    code, out, err = run("--help")
    commands = ("serve", "build", "classify", "tag", "embed", "rank", "tokenize", "generate", "models", "bench")
    assert (code, err, [name for name in commands if f"\n    {name} " not in out]) == (0, "", [])
