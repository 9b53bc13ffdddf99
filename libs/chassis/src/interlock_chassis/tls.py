"""Mutual TLS between our processes; a peer's name is its certificate's URI SAN."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from interlock_chassis.errors import ConfigError, Unauthenticated

SPIFFE_PREFIX = "spiffe://interlock/"
"""Every name of ours starts so; the rest is what caller tables list."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}(/[a-z0-9][a-z0-9-]{0,62})?")
"""An mTLS name, such as `gateway-edge` or `app/reports`."""

_VARIABLES = {
    "ca": "INTERLOCK_TLS_CA_FILE",
    "cert": "INTERLOCK_TLS_CERT_FILE",
    "key": "INTERLOCK_TLS_KEY_FILE",
}


@dataclass(frozen=True)
class TlsFiles:
    """Where a process finds its authority, certificate chain and key, as PEM."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True)
class _Material:
    ca: bytes
    cert: bytes
    key: bytes

    def __repr__(self) -> str:
        return "<TLS material>"


class PeerContext(Protocol):
    """The part of a gRPC servicer context that tells who the peer is."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Return the properties that the TLS handshake proved."""
        ...


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Make credentials that demand a client certificate of the same authority.

    The files are looked at again at every handshake, so a renewed certificate
    is served without a restart. Files that cannot be read then leave the
    certificate in use as it is.

    Raises:
        ConfigError: A file cannot be read now, or key and certificate differ.
    """
    renewal = _Renewal(files)
    return grpc.dynamic_ssl_server_credentials(
        _configuration(renewal.material),
        renewal.fetch,  # type: ignore[arg-type]  # The stubs forgot that it may return None.
        require_client_authentication=True,
    )


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """Make credentials that trust only the authority and present the certificate.

    The files are read now; `open_channel` makes new ones when they change.

    Raises:
        ConfigError: A file cannot be read, or key and certificate differ.
    """
    material = _read(files)
    return grpc.ssl_channel_credentials(
        root_certificates=material.ca,
        private_key=material.key,
        certificate_chain=material.cert,
    )


def peer_name(context: PeerContext) -> str:
    """Return the mTLS name of the peer, as caller tables list it.

    Raises:
        Unauthenticated: The certificate names nobody, several, or somebody who
            is not ours.
    """
    found = [*(context.auth_context().get("peer_spiffe_id") or ())]
    if len(found) != 1:
        raise Unauthenticated
    try:
        uri = found[0].decode("ascii")
    except UnicodeDecodeError:
        raise Unauthenticated from None
    name = uri.removeprefix(SPIFFE_PREFIX)
    if name == uri or not NAME.fullmatch(name):
        raise Unauthenticated
    return name


class _Renewal:
    """Serve the certificate on disk, looking again at every handshake."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._stamps = stamps_of(files)
        self.material = _read(files)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, or None when nothing changed.

        Called by gRPC on a thread of its own.
        """
        log = structlog.get_logger()
        try:
            stamps = stamps_of(self._files)
            if stamps == self._stamps:
                return None
            material = _read(self._files)
        except (ConfigError, OSError):
            log.warning("tls_reload_failed", certificate=str(self._files.cert))
            return None
        self._stamps = stamps
        if material == self.material:
            return None
        self.material = material
        log.info("tls_reloaded", certificate=str(self._files.cert))
        return _configuration(material)


def _configuration(material: _Material) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(material.key, material.cert)], root_certificates=material.ca
    )


def stamps_of(files: TlsFiles) -> tuple[tuple[int, int, int], ...]:
    """Return what changes when one of the files does."""
    found = (path.stat() for path in (files.ca, files.cert, files.key) if path.exists())
    return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in found)


def _read(files: TlsFiles) -> _Material:
    material = _Material(
        ca=_read_one(files.ca, _VARIABLES["ca"]),
        cert=_read_one(files.cert, _VARIABLES["cert"]),
        key=_read_one(files.key, _VARIABLES["key"]),
    )
    _require_pair(material)
    return material


def _require_pair(material: _Material) -> None:
    """Refuse what a renewal half done, or files mixed up, would look like.

    gRPC would take it, and fail every handshake.
    """
    try:
        certified = x509.load_pem_x509_certificate(material.cert).public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(_VARIABLES["cert"], "the file holds no certificate") from None
    try:
        owned = load_pem_private_key(material.key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(_VARIABLES["key"], "the file holds no private key") from None
    if owned != certified:
        raise ConfigError(_VARIABLES["key"], "the key is not the certificate's")


def _read_one(path: Path, variable: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(variable, f"cannot read the file: {error.strerror}") from None
    if b"-----BEGIN " not in content:
        raise ConfigError(variable, "the file is not PEM")
    return content
