"""The join key: what a device must know to join a cluster, and its text. Pure data; any thread.

The fingerprint is the SHA-256 of the master's own certificate (DER), not of the authority's: it is what a client sees
of its peer before it trusts anything. Both certificates live as long as the cluster, so the key stays valid.

The text is ``tpi1-`` followed by the bytes below in base32, lower case without padding: no case to get wrong, one
double click selects it. Spaces and line breaks inside it are ignored.

======= =============================================================================
bytes   field
======= =============================================================================
1       number of addresses, 1 to 8
1+n+2   each address: length n of the host (1 to 253), host in ASCII, port (little-endian)
32      fingerprint
16      secret
4       checksum: the first bytes of the SHA-256 of all bytes before it
======= =============================================================================
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from tpi.errors import PairingError, UsageError

PREFIX = "tpi1-"
MAX_ADDRESSES = 8
MAX_HOST_LENGTH = 253
FINGERPRINT_BYTES = 32
SECRET_BYTES = 16
MAX_KEY_LENGTH = 4096
_CHECKSUM_BYTES = 4
_COPY_AGAIN = "copy it again from `tpi serve`"
_HOST = re.compile(r"[A-Za-z0-9._:%-]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a master listens."""

    host: str
    """A name, an IPv4 address, or an IPv6 address without brackets."""
    port: int

    def __post_init__(self) -> None:
        if not (_HOST.fullmatch(self.host) and len(self.host) <= MAX_HOST_LENGTH and 0 < self.port < 65536):
            raise UsageError(f"{self.host!r} port {self.port} is no address: it must look like 192.168.1.5:7071")

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """``HOST:PORT`` or ``[IPV6]:PORT``; raises UsageError."""
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise UsageError(f"{text!r} is no address: it must look like 192.168.1.5:7071 or [fe80::1]:7071")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class JoinKey:
    """What a device must know to join. Its text and its secret are never logged; ``repr`` shows neither."""

    addresses: tuple[Address, ...]
    fingerprint: bytes
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        assert 1 <= len(self.addresses) <= MAX_ADDRESSES, "a join key holds 1 to 8 addresses"
        assert len(self.fingerprint) == FINGERPRINT_BYTES and len(self.secret) == SECRET_BYTES

    def encode(self) -> str:
        """The text that a person copies. It contains the secret."""
        parts = [bytes([len(self.addresses)])]
        for address in self.addresses:
            host = address.host.encode("ascii")
            parts += [bytes([len(host)]), host, address.port.to_bytes(2, "little")]
        content = b"".join([*parts, self.fingerprint, self.secret])
        return PREFIX + base64.b32encode(content + _checksum(content)).decode("ascii").rstrip("=").lower()

    @classmethod
    def decode(cls, text: str) -> "JoinKey":
        """Read a key's text; raises PairingError, which never repeats any of it."""
        compact = "".join(text.split()).lower()
        if not compact:
            raise PairingError(f"the join key is empty: {_COPY_AGAIN}")
        if len(compact) > MAX_KEY_LENGTH:
            raise PairingError(f"the join key is longer than {MAX_KEY_LENGTH} characters: {_COPY_AGAIN}")
        if re.match(r"tpi[0-9]{1,4}-", compact) and not compact.startswith(PREFIX):
            raise PairingError("the join key is of another version: install the same version of tpi on all devices")
        if not compact.startswith(PREFIX):
            raise PairingError(f"the join key does not begin with {PREFIX}: {_COPY_AGAIN}")
        body = compact.removeprefix(PREFIX)
        try:
            data = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
        except (binascii.Error, ValueError):
            data = b""
        content, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if checksum != _checksum(content):
            raise PairingError(f"the join key has a typing mistake, or a part of it is missing: {_COPY_AGAIN}")
        try:
            return _decode_content(content)
        except (IndexError, ValueError, UsageError):
            raise PairingError("the join key is of a form that this version does not know: update tpi") from None


def _decode_content(content: bytes) -> JoinKey:
    n_addresses, position = content[0], 1
    if not 1 <= n_addresses <= MAX_ADDRESSES:
        raise ValueError("number of addresses")
    addresses = []
    for _ in range(n_addresses):
        length = content[position]
        host = content[position + 1 : position + 1 + length].decode("ascii")
        position += 1 + length + 2
        addresses.append(Address(host, int.from_bytes(content[position - 2 : position], "little")))
    rest = content[position:]
    if len(rest) != FINGERPRINT_BYTES + SECRET_BYTES:
        raise ValueError("length")
    return JoinKey(tuple(addresses), rest[:FINGERPRINT_BYTES], rest[FINGERPRINT_BYTES:])


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
