"""Who is let in."""

from hashlib import sha256
from pathlib import Path

import pytest

from millis_server.access.guard import Guard, caller
from millis_server.errors import Forbidden, QuotaExceeded, Unauthenticated


def entry(name: str, key: str, *lines: str) -> str:
    return "\n".join([f"[callers.{name}]", f'key_sha256 = "{sha256(key.encode()).hexdigest()}"', *lines, ""])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "callers.toml"
    path.write_text(entry("search", "secret", "requests_per_minute = 3") + entry("ops", "root", "operator = true"))
    return path


def bearer(key: str) -> list[tuple[str, str]]:
    return [("user-agent", "grpc"), ("authorization", f"Bearer {key}")]


def replace(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


async def test_a_key_tells_who_calls(path):
    Guard(path).admit("ClassifyText", bearer("secret"))
    assert caller().name == "search"


@pytest.mark.parametrize("value", ["bearer secret", "BEARER  secret", b"Bearer secret"])
async def test_the_scheme_is_read_in_any_case(path, value):
    Guard(path).admit("ClassifyText", [("authorization", value)])
    assert caller().name == "search"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "the call brings no key; send it as metadata, `authorization: Bearer KEY`"),
        ([("authorization", "secret")], "authorization is not of the form `Bearer KEY`"),
        ([("authorization", "Basic secret")], "authorization is not of the form `Bearer KEY`"),
        (bearer("secreT"), "the key is not that of any caller"),
        ([("authorization", "Bearer \xff")], "the key is not that of any caller"),
    ],
)
async def test_a_call_without_a_good_key_is_refused(path, metadata, message):
    with pytest.raises(Unauthenticated) as caught:
        Guard(path).admit("ClassifyText", metadata)
    assert str(caught.value) == message


@pytest.mark.parametrize("rpc", ["LoadModel", "UnloadModel"])
async def test_only_operators_load_and_unload(path, rpc):
    guard = Guard(path)
    guard.admit(rpc, bearer("root"))
    with pytest.raises(Forbidden) as caught:
        guard.admit(rpc, bearer("secret"))
    assert str(caught.value) == f"caller 'search' may not call {rpc}; only operators may"


async def test_a_changed_file_is_followed_and_what_was_used_stays_used(path):
    guard = Guard(path)
    for _ in range(3):
        guard.admit("ClassifyText", bearer("secret"))
    replace(path, entry("search", "newer", "requests_per_minute = 4"))
    await guard.look()
    with pytest.raises(Unauthenticated):
        guard.admit("ClassifyText", bearer("secret"))
    guard.admit("ClassifyText", bearer("newer"))
    with pytest.raises(QuotaExceeded):
        guard.admit("ClassifyText", bearer("newer"))
    assert [(known.name, known.calls, known.refused) for known in guard.callers] == [("search", 5, 1)]


@pytest.mark.parametrize("text", ["[callers", None])
async def test_a_file_that_cannot_be_used_any_more_changes_nothing(path, text, caplog):
    guard = Guard(path)
    if text is None:
        path.unlink()
    else:
        replace(path, text)
    await guard.look()
    guard.admit("ClassifyText", bearer("secret"))
    (record,) = caplog.records
    assert record.getMessage().endswith("; the callers stay those that were read before")
