"""A gateway that knows its callers, on an encrypted port: keys, quotas, models that a caller may ask, certificates."""

from __future__ import annotations

import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import trustme

import millis
from benchmarks.gateway import Running, running_gateway
from tests import tiny_generation
from tests.conftest import Published
from tests.gateway.test_metrics import free_port, scrape

CALLERS = {
    "shop": (),
    "answers": ('models = ["intent"]',),
    "few": ("requests_per_minute = 2",),
    "reader": ("tokens_per_minute = 10",),
    "writer": ("tokens_per_minute = 30",),
    "leaver": ("tokens_per_minute = 30",),
    "operator": ("operator = true",),
}
TEXT = "where is my order"
PROMPT_TOKENS = len(tiny_generation.bytes_tokenizer().encode(TEXT))
PATIENCE_SECONDS = 30
Connect = Callable[[str | None], millis.Client]


def callers_file(path: Path, **more: tuple[str, ...]) -> Path:
    """Every caller's key is its name and `-key`."""
    tables = []
    for name, lines in (CALLERS | more).items():
        digest = sha256(f"{name}-key".encode()).hexdigest()
        tables.append("\n".join([f"[callers.{name}]", f'key_sha256 = "{digest}"', *lines]))
    aside = path.with_suffix(".new")
    aside.write_text("\n".join(tables))
    return aside.replace(path)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate, key and callers of the gateway."""
    folder = tmp_path_factory.mktemp("access")
    write_certificate(authority.issue_cert("127.0.0.1"), folder)
    callers_file(folder / "callers.toml")
    return folder


def write_certificate(certificate: trustme.LeafCert, folder: Path) -> None:
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "certificate.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def guarded(
    published: Published,
    authority: trustme.CA,
    files: Path,
    port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Running]:
    repository = published.intent_alone(tmp_path_factory.mktemp("guarded") / "repository")
    tiny_generation.publish_language_model(repository, "storyteller", tiny_generation.language_model("llama"))
    options = ["--callers", str(files / "callers.toml"), "--metrics-port", str(port)]
    options += ["--tls-certificate", str(files / "certificate.pem"), "--tls-key", str(files / "key.pem")]
    options += ["--repository-poll-seconds", "0.2"]
    with running_gateway(repository, *options, tls=trusting(authority)) as running:
        yield running


def trusting(authority: trustme.CA) -> millis.TlsConfig:
    return millis.TlsConfig(root_certificates=authority.cert_pem.bytes())


@pytest.fixture
def connect(guarded: Running, authority: trustme.CA) -> Iterator[Connect]:
    """Makes clients, each with the key of a caller."""
    clients: list[millis.Client] = []

    def make(name: str | None) -> millis.Client:
        key = None if name is None else f"{name}-key"
        clients.append(millis.Client(guarded.target, tls=trusting(authority), api_key=key))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def test_a_caller_with_a_key_is_answered(connect):
    assert connect("shop").classify(TEXT, model="intent").label
    with connect("shop").generate(TEXT, model="storyteller", max_tokens=3, ignore_eos=True) as stream:
        assert len(stream.text()) > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "the call brings no key; send it as metadata, `authorization: Bearer KEY`"),
        ("nobody", "the key is not that of any caller"),
    ],
)
def test_a_call_without_a_good_key_is_refused_whatever_it_asks(connect, name, message):
    client = connect(name)
    asking = [
        lambda: client.classify(TEXT, model="intent"),
        lambda: client.tokenize(TEXT, model="intent"),
        lambda: client.generate(TEXT, model="storyteller").text(),
        lambda: client.models.list(),
        lambda: client.models.unload("intent"),
        lambda: next(client.models.watch()),
    ]
    for ask in asking:
        with pytest.raises(millis.UnauthenticatedError) as caught:
            ask()
        assert (str(caught.value), caught.value.reason) == (message, "UNAUTHENTICATED")


def test_health_needs_no_key(connect):
    connect(None).wait_ready(timeout=5)


def test_only_an_operator_loads_and_unloads(connect):
    with pytest.raises(millis.PermissionDeniedError, match="caller 'shop' may not call UnloadModel") as caught:
        connect("shop").models.unload("intent")
    assert caught.value.reason == "FORBIDDEN"
    assert connect("operator").models.load("intent").name == "intent"


def test_a_caller_asks_only_the_models_that_it_may(connect):
    client = connect("answers")
    assert client.classify([TEXT]).info.served_by.model == "intent"
    assert client.tokenize(TEXT, model="intent").tokens
    for ask in (
        lambda: client.generate(TEXT).text(),
        lambda: client.generate(TEXT, model="storyteller").text(),
        lambda: client.tokenize(TEXT, model="storyteller"),
        lambda: client.classify(TEXT, model="secret"),
    ):
        with pytest.raises(millis.PermissionDeniedError, match=r"its models are: intent$"):
            ask()


def test_calls_beyond_a_callers_quota_are_refused_and_others_go_on(connect):
    client = connect("few")
    client.classify(TEXT, model="intent")
    client.classify(TEXT, model="intent")
    with pytest.raises(millis.ResourceExhaustedError) as caught:
        client.classify(TEXT, model="intent")
    assert str(caught.value).startswith("caller 'few' has used up requests_per_minute (2); more in ")
    assert caught.value.reason == "QUOTA_EXCEEDED"
    assert 20 < caught.value.retry_after <= 30
    connect("shop").classify(TEXT, model="intent")


def test_tokens_of_texts_count_and_what_was_let_in_is_answered_whole(connect):
    client = connect("reader")
    assert client.classify([TEXT] * 5, model="intent").info.usage.tokens == 30
    with pytest.raises(millis.ResourceExhaustedError, match=r"has used up tokens_per_minute \(10\)") as caught:
        client.classify(TEXT, model="intent")
    assert 110 < caught.value.retry_after <= 120


def test_tokens_of_prompts_and_of_generated_text_count(connect, port):
    client = connect("writer")
    client.generate(TEXT, model="storyteller", max_tokens=40, ignore_eos=True).text()
    with pytest.raises(millis.ResourceExhaustedError, match="tokens_per_minute"):
        client.generate(TEXT, model="storyteller", max_tokens=20).text()
    assert scrape(port)["millis_caller_tokens_total", "writer"] == PROMPT_TOKENS + 40


def test_who_leaves_a_generation_pays_for_what_was_made(connect, port):
    with connect("leaver").generate(TEXT, model="storyteller", max_tokens=60, ignore_eos=True) as stream:
        for _ in range(5):
            next(stream)
    used = scrape(port)["millis_caller_tokens_total", "leaver"]
    assert PROMPT_TOKENS < used < PROMPT_TOKENS + 60


def test_metrics_tell_what_each_caller_did(connect, port):
    client = connect("shop")
    before = scrape(port)
    client.classify(TEXT, model="intent")
    after = scrape(port)
    names = ["millis_caller_calls_total", "millis_caller_tokens_total", "millis_caller_quota_refusals_total"]
    assert [after[name, "shop"] - before[name, "shop"] for name in names] == [1, 6, 0]
    assert after["millis_caller_quota_refusals_total", "few"] == 1


def test_a_caller_who_is_added_to_the_file_may_call_without_a_restart(connect, files):
    with pytest.raises(millis.UnauthenticatedError):
        connect("newcomer").classify(TEXT, model="intent")
    callers_file(files / "callers.toml", newcomer=())
    assert until_answered(connect("newcomer"))


def until_answered(client: millis.Client) -> str:
    ends = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return client.classify(TEXT, model="intent").label
        except millis.UnauthenticatedError:
            assert time.monotonic() < ends
            time.sleep(0.1)


def test_a_port_that_is_encrypted_refuses_who_does_not_encrypt(guarded):
    with (
        millis.Client(guarded.target, retry=millis.RetryConfig(attempts=1)) as client,
        pytest.raises(millis.UnavailableError),
    ):
        client.classify(TEXT, model="intent", timeout=5)


def test_a_renewed_certificate_is_shown_to_new_connections(guarded, authority, files, connect):
    before = connect("shop")
    before.classify(TEXT, model="intent")
    old = shown_certificate(guarded.target)
    write_certificate(authority.issue_cert("127.0.0.1"), files)
    assert shown_certificate(guarded.target) != old
    (files / "key.pem").write_text("nonsense")
    renewed = shown_certificate(guarded.target)
    assert before.classify(TEXT, model="intent").label
    assert renewed != old
    assert shown_certificate(guarded.target) == renewed


def shown_certificate(target: str) -> str:
    host, _, port = target.rpartition(":")
    return ssl.get_server_certificate((host, int(port)))


def test_callers_must_show_a_certificate_where_that_is_asked(published, authority, files, tmp_path):
    write_certificate(authority.issue_cert("127.0.0.1"), tmp_path)
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    options = ["--tls-certificate", str(tmp_path / "certificate.pem"), "--tls-key", str(tmp_path / "key.pem")]
    options += ["--tls-client-ca", str(tmp_path / "authority.pem")]
    mine = authority.issue_cert("shop.example")
    tls = millis.TlsConfig(
        root_certificates=authority.cert_pem.bytes(),
        private_key=mine.private_key_pem.bytes(),
        certificate_chain=mine.cert_chain_pems[0].bytes(),
    )
    repository = published.intent_alone(tmp_path / "repository")
    with running_gateway(repository, *options, tls=tls) as running:
        with millis.Client(running.target, tls=tls) as client:
            assert client.classify(TEXT, model="intent").label
        nothing_shown = millis.Client(running.target, tls=trusting(authority), retry=millis.RetryConfig(attempts=1))
        with nothing_shown as client, pytest.raises(millis.UnavailableError):
            client.classify(TEXT, model="intent", timeout=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--callers", "{folder}/nobody.toml"], "{folder}/nobody.toml: No such file or directory"),
        (["--callers", "{folder}/certificate.pem"], "{folder}/certificate.pem: not TOML: "),
        (["--tls-key", "{folder}/key.pem"], "tls_certificate and tls_key go together, and only one is given"),
        (
            ["--tls-certificate", "{folder}/other.pem", "--tls-key", "{folder}/key.pem"],
            "{folder}/other.pem with {folder}/key.pem: key values mismatch",
        ),
    ],
)
def test_a_gateway_whose_files_cannot_be_used_does_not_start_and_says_why(published, tmp_path, options, message):
    authority = trustme.CA()
    write_certificate(authority.issue_cert("127.0.0.1"), tmp_path)
    authority.issue_cert("127.0.0.1").cert_chain_pems[0].write_to_path(tmp_path / "other.pem")
    command = [
        sys.executable,
        "-m",
        "millis.cli",
        "serve",
        "--model-repository",
        str(published.repository),
        "--port",
        "0",
    ]
    command += ["--state-dir", str(tmp_path / "state"), *(option.format(folder=tmp_path) for option in options)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert ended.returncode != 0
    assert message.format(folder=tmp_path) in ended.stderr.splitlines()[-1]


def test_the_command_line_reads_its_key_from_a_file(guarded, files, authority, tmp_path):
    (tmp_path / "key").write_text("shop-key\n")
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    command = [sys.executable, "-m", "millis.cli", "classify", TEXT, "--target", guarded.target, "--model", "intent"]
    command += ["--tls-ca", str(tmp_path / "authority.pem")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    command += ["--api-key-file", str(tmp_path / "key")]
    answered = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (refused.returncode == 0, answered.returncode) == (False, 0)
    assert "the call brings no key" in refused.stderr


def test_the_async_client_brings_its_key_too(guarded, authority):
    import asyncio

    async def ask(key: str) -> str:
        async with millis.AsyncClient(guarded.target, tls=trusting(authority), api_key=key) as client:
            return (await client.classify(TEXT, model="intent")).label

    assert asyncio.run(ask("shop-key"))
    with pytest.raises(millis.UnauthenticatedError):
        asyncio.run(ask("nobody-key"))
