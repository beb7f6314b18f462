"""The encrypted port: certificate, key and the authorities of callers, read from PEM files and followed."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

LOG = logging.getLogger("millis.access")


class TlsError(ValueError):
    """Files that make no encrypted port; the message is one line and names the file."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files are.

    Attributes:
        certificate: of the gateway, followed by those between it and its authority.
        key: of the certificate, without a password.
        client_ca: authorities of the callers' certificates; None asks callers for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Reads and checks them.

        Raises:
            TlsError: a file cannot be read, is not PEM, or the key is not the certificate's.
        """
        # OpenSSL says what is wrong; gRPC would only fail each handshake.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # A key with a password is refused at once, or OpenSSL would ask for it on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            raise TlsError(f"{self.certificate} with {self.key}: {_reason(error)}") from None
        authorities = None
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
                authorities = self.client_ca.read_bytes()
            except OSError as error:
                raise TlsError(f"{self.client_ca}: {_reason(error)}") from None
        pair = self.key.read_bytes(), self.certificate.read_bytes()
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def stamp(self) -> tuple[int, ...]:
        """Tells changed files from those before."""
        paths = [path for path in (self.certificate, self.key, self.client_ca) if path is not None]
        return tuple(path.stat().st_mtime_ns for path in paths)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of a port whose new connections use the files as they are then.

    A certificate that was renewed needs no restart. Files that cannot be used change nothing, and the log says why.

    Raises:
        TlsError: they cannot be used now.
    """
    follower = _Follower(files)
    return grpc.dynamic_ssl_server_credentials(
        follower.first,
        follower.changed,  # type: ignore[arg-type]  # gRPC takes None for "as before"
        require_client_authentication=files.client_ca is not None,
    )


class _Follower:
    """Asked by gRPC, on a thread of its own, at each new connection."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.first = files.read()
        self._stamp = files.stamp()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new configuration; None while it is the one that gRPC has."""
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            self._stamp = stamp
            renewed = self._files.read()
        except (OSError, TlsError) as error:
            LOG.error("%s; the certificate stays the one that was read before", error)
            return None
        LOG.info("%s: read anew", self._files.certificate)
        return renewed


def _reason(error: OSError) -> str:
    """What is wrong, without OpenSSL's place in its source."""
    if isinstance(error, ssl.SSLError):
        return error.reason.replace("_", " ").lower() if error.reason else "not a PEM file"
    return error.strerror or str(error)
