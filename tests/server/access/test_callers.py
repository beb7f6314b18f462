"""The file of callers: what it may say, what is refused, and what a caller may do."""

from hashlib import sha256
from pathlib import Path

import pytest

from millis_server.access.callers import CallersError, read_callers
from millis_server.errors import Forbidden, QuotaExceeded

DIGEST = sha256(b"secret").hexdigest()
FULL = f"""
[callers.search]
key_sha256 = "{DIGEST.upper()}"
models = ["intent", "embed"]
requests_per_minute = 2
tokens_per_minute = 100
operator = true

[callers."a batch job"]
key_sha256 = "{sha256(b"other").hexdigest()}"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "callers.toml"
    path.write_text(text)
    return path


def test_a_caller_has_what_the_file_gives_it_and_else_no_limit(tmp_path):
    search, job = read_callers(written(tmp_path, FULL)).values()
    assert (search.name, search.models, search.operator) == ("search", {"intent", "embed"}, True)
    assert (search.requests.per_minute, search.tokens.per_minute) == (2, 100)
    assert (job.name, job.models, job.operator, job.requests, job.tokens) == ("a batch job", None, False, None, None)


def test_callers_are_found_by_the_digest_of_their_key(tmp_path):
    callers = read_callers(written(tmp_path, FULL))
    assert callers[sha256(b"secret").digest()].name == "search"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "callers: Field required"),
        ("[callers]", "callers: Dictionary should have at least 1 item after validation, not 0"),
        ("[callers.a]", "callers.a.key_sha256: Field required"),
        ("[callers.a]\nkey_sha256 = 'secret'", "callers.a.key_sha256: String should match pattern '^[0-9a-fA-F]{64}$'"),
        (f"[callers.a]\nkey_sha256 = '{DIGEST}'\nmodels = []", "callers.a.models: List should have at least 1 item"),
        (
            f"[callers.a]\nkey_sha256 = '{DIGEST}'\ntokens_per_minute = 0",
            "callers.a.tokens_per_minute: Input should be greater than or equal to 1",
        ),
        (f"[callers.a]\nkey_sha256 = '{DIGEST}'\nquota = 3", "callers.a.quota: Extra inputs are not permitted"),
        (
            f"[callers.a]\nkey_sha256 = '{DIGEST}'\n[callers.b]\nkey_sha256 = '{DIGEST}'",
            "callers.b.key_sha256: is that of a too",
        ),
        ("[callers.a\n", "not TOML: "),
    ],
)
def test_a_file_that_cannot_be_used_says_where_it_is_wrong(tmp_path, text, problem):
    path = written(tmp_path, text)
    with pytest.raises(CallersError) as caught:
        read_callers(path)
    assert str(caught.value).startswith(f"{path}: {problem}")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CallersError, match=r"callers\.toml: No such file or directory"):
        read_callers(tmp_path / "callers.toml")


def test_calls_beyond_the_allowance_are_refused_and_say_when_to_come_again(tmp_path):
    search, _ = read_callers(written(tmp_path, FULL)).values()
    search.admit()
    search.admit()
    with pytest.raises(QuotaExceeded) as caught:
        search.admit()
    assert str(caught.value).startswith("caller 'search' has used up requests_per_minute (2); more in ")
    assert caught.value.retry_after == pytest.approx(30, abs=1)
    assert (search.calls, search.refused) == (3, 1)


def test_tokens_are_paid_afterwards_and_a_debt_refuses_the_next_call(tmp_path):
    search, _ = read_callers(written(tmp_path, FULL)).values()
    search.admit()
    search.spend(150)
    with pytest.raises(QuotaExceeded, match=r"has used up tokens_per_minute \(100\)") as caught:
        search.admit()
    assert caught.value.retry_after == pytest.approx(30, abs=1)
    assert search.used == 150


def test_a_call_that_is_refused_for_its_tokens_takes_no_request_of_the_allowance(tmp_path):
    search, _ = read_callers(written(tmp_path, FULL)).values()
    search.spend(150)
    for _ in range(5):
        with pytest.raises(QuotaExceeded, match="tokens_per_minute"):
            search.admit()
    assert search.requests.left == 2.0


def test_a_caller_asks_only_its_own_models(tmp_path):
    search, job = read_callers(written(tmp_path, FULL)).values()
    search.permit("intent")
    job.permit("sentiment")
    with pytest.raises(Forbidden) as caught:
        search.permit("sentiment")
    assert str(caught.value) == "caller 'search' may not ask model 'sentiment'; its models are: embed, intent"
