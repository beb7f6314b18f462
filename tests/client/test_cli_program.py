"""The command as a process: streams, signals, and readers that leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from millis.testing import FakeGateway, classified


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "millis.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # gRPC's core has a log of its own, in which closing a poller at exit is now and then an error.
        env=os.environ | {"GRPC_VERBOSITY": "NONE"} | environment,
        # A test run that was started in the background ignores Ctrl-C, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_the_program_prints_what_a_plain_terminal_can_show(gateway: FakeGateway) -> None:
    gateway.script("ClassifyText", classified("greeting"), classified("greeting"))
    plain = {"MILLIS_TARGET": gateway.target, "PYTHONIOENCODING": "ascii"}
    table, _ = start("classify", "你好", **plain).communicate(timeout=60)
    line, _ = start("classify", "--json", "你好", **plain).communicate(timeout=60)
    assert table == "LABEL      SCORE  TEXT\ngreeting  1.0000  \\u4f60\\u597d\n"
    assert (line.isascii(), json.loads(line)["text"]) == (True, "你好")


def test_a_reader_that_leaves_is_no_error(gateway: FakeGateway, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("a text\n" * 2000, encoding="utf-8")
    process = start("classify", "--json", "--file", str(file), MILLIS_TARGET=gateway.target)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")
    process.stderr.close()


def test_ctrl_c_prints_what_bench_has_measured(gateway: FakeGateway) -> None:
    process = start("bench", "--requests", "100000000", "--json", MILLIS_TARGET=gateway.target)
    while len(gateway.requests) < 100 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    report = json.loads(out)
    assert (process.returncode, err, report["concurrency"], report["errors"]) == (130, "", 1, 0)
    assert report["requests"] > 0


def test_ctrl_c_ends_a_watch(gateway: FakeGateway) -> None:
    process = start("models", "watch", MILLIS_TARGET=gateway.target)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (first, process.returncode, err) == (
        "fake  text-classification  fp32 1 ready, int8 1 ready  yes\n",
        130,
        "",
    )
