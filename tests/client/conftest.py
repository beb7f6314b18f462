from collections.abc import AsyncIterator, Callable, Iterator

import pytest

import millis
from millis.cli import main
from millis.testing import FakeGateway
from tests.client.twins import AnyClient, maybe_await


@pytest.fixture
def gateway() -> Iterator[FakeGateway]:
    with FakeGateway() as gateway:
        yield gateway


@pytest.fixture(params=[millis.Client, millis.AsyncClient], ids=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> type[AnyClient]:
    """Each behaviour test runs on both clients."""
    return request.param


@pytest.fixture
async def client(kind: type[AnyClient], gateway: FakeGateway) -> AsyncIterator[AnyClient]:
    client = kind(gateway.target)
    yield client
    await maybe_await(client.close())


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("MILLIS_TARGET", gateway.target)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run
