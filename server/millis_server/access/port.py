"""The port on which the gateway listens, plain or encrypted."""

from __future__ import annotations

import ipaddress
import socket

import grpc.aio

from millis_server.access.tls import TlsFiles, server_credentials


class CannotListen(RuntimeError):
    """Nobody can listen there; the message is one line and says why."""


def open_port(server: grpc.aio.Server, host: str, port: int, tls: TlsFiles | None) -> int:
    """Makes a server listen.

    Args:
        server: that has not been started.
        host: address to listen on.
        port: to listen on; 0 takes a free one.
        tls: files of an encrypted port; None opens a plain one.

    Returns:
        The port.

    Raises:
        CannotListen: it is taken, or no address of this machine.
        TlsError: the files make no encrypted port.
    """
    address = f"{host}:{port}"
    credentials = None if tls is None else server_credentials(tls)
    try:
        _check_free(host, port)
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is in use, or no address of this machine"
        raise CannotListen(f"cannot listen on {address}: {reason}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_free(host: str, port: int) -> None:
    """Raises OSError when nobody could listen there; gRPC says only that it failed, and writes lines of its own."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
