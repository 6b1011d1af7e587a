"""TLS as links use it: version 1.3 only, no resumption, certificates of one cluster's authority. Any thread.

Host names are not checked: devices move between addresses. Who a peer is, its certificate says; who the master is,
the pinned fingerprint.
"""

import hashlib
import ssl
from pathlib import Path
from typing import Any

import msgspec


class Device(msgspec.Struct, frozen=True):
    """Who a verified certificate says that the peer is."""

    name: str
    serial: int


def server_context(chain_path: Path, authority_path: Path, *, strangers: bool) -> ssl.SSLContext:
    """For the end that listens. ``chain_path`` holds its key and certificate.

    With ``strangers`` a peer without a certificate gets through the handshake (and must be asked for the join
    secret); one with a certificate that is not the cluster's never does.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL if strangers else ssl.CERT_REQUIRED
    context.num_tickets = 0
    return _finish(context, chain_path, authority_path)


def client_context(chain_path: Path, authority_path: Path) -> ssl.SSLContext:
    """For a paired device that calls."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return _finish(context, chain_path, authority_path)


def stranger_context() -> ssl.SSLContext:
    """For a device that has no certificate yet; it must check ``peer_fingerprint`` before it sends anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of a certificate."""
    return hashlib.sha256(certificate_der).digest()


def peer_fingerprint(sock: ssl.SSLSocket) -> bytes | None:
    """Of the peer's own certificate, verified or not; None when it showed none."""
    der = sock.getpeercert(binary_form=True)
    return fingerprint(der) if der else None


def peer_device(sock: ssl.SSLSocket) -> Device | None:
    """Who the peer is; None when it showed no certificate. Only for contexts that verify."""
    certificate: dict[str, Any] | None = sock.getpeercert()
    if not certificate:
        return None
    names = [value for part in certificate["subject"] for key, value in part if key == "commonName"]
    return Device(names[0], int(certificate["serialNumber"], 16)) if len(names) == 1 else None


def _finish(context: ssl.SSLContext, chain_path: Path, authority_path: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(chain_path)
    context.load_verify_locations(authority_path)
    return context
