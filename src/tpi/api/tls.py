"""The server's certificate, as people have it in files. What devices of a cluster show each other is another one."""

import ssl
from pathlib import Path

from tpi.errors import UsageError


def read_certificate(certificate: Path, key: Path | None) -> ssl.SSLContext:
    """A server's side of TLS 1.2 or newer. ``key`` None: it stands in the file of the certificate and its chain.

    Raises:
        UsageError: a file cannot be read, holds something else, or is encrypted; or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in filter(None, (certificate, key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except (ssl.SSLError, ValueError, OSError) as error:
        pair = f"{certificate} and {key}" if key is not None else str(certificate)
        why = getattr(error, "reason", None) or error
        raise UsageError(f"{pair} is no certificate with its unencrypted key, both in PEM ({why})") from error
    return context


def _refuse() -> str:
    """OpenSSL would ask the terminal."""
    raise ValueError("the key is encrypted")
