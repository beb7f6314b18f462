"""`millis serve`: starts the gateway, and lets it answer until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from millis_server.access.callers import CallersError
from millis_server.access.port import CannotListen, is_loopback
from millis_server.access.tls import TlsError
from millis_server.gateway import Gateway, StartFailed
from millis_server.repository import RepositoryError
from millis_server.settings import ConfigError, Settings, read_settings
from millis_server.triton.launcher import TritonFailed

LOG = logging.getLogger("millis")


async def serve(settings: Settings) -> None:
    """Runs a gateway until SIGINT or SIGTERM.

    Raises:
        CallersError: the file of callers cannot be used.
        StartFailed, CannotListen, TlsError, RepositoryError, TritonFailed: as `Gateway.start` and `Gateway.run`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(settings)
    starting = asyncio.create_task(gateway.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            return
        starting.result()
        # What is here now stays. Every full collection would walk it, 15 to 30 ms in which nobody is answered.
        gc.collect()
        gc.freeze()
        _announce(gateway, settings)
        await gateway.run(stop)
        LOG.info("stopping: calls under way have %g s to finish", settings.drain_seconds)
    finally:
        stopping.cancel()
        await gateway.stop()


def _announce(gateway: Gateway, settings: Settings) -> None:
    for name in gateway.catalogue.models():
        for variant in gateway.catalogue.variants_of(name):
            state = variant.state.value + (f" ({variant.reason})" if variant.reason else "")
            LOG.info("%s %s: %s", name, variant.manifest.variant, state)
    if settings.callers is not None and settings.tls() is None and not is_loopback(settings.host):
        LOG.warning("callers' keys cross the network unencrypted: --tls-certificate and --tls-key are not set")
    LOG.info("serving on %s:%d; stop with Ctrl-C", settings.host, gateway.port)


def main(argv: Sequence[str]) -> int:
    """Runs `millis serve`.

    Args:
        argv: options, see millis_server.settings.

    Returns:
        Exit code: 0 after a stop that was asked for, 1 when it cannot start or go on, 2 for a wrong setting.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        uvloop.run(serve(read_settings(list(argv))))
    except ConfigError as error:
        print(f"millis serve: {error}", file=sys.stderr)
        return 2
    except (StartFailed, CannotListen, TlsError, CallersError, RepositoryError, TritonFailed) as error:
        print(f"millis serve: {error}", file=sys.stderr)
        return 1
    return 0
