"""Calling a master: joining its cluster, and opening control and data links. Keeps no state; blocks its caller.

Whatever can go wrong is one line that says with whom, what, and what to do. Nothing is sent, the secret least of all,
before the master has shown the certificate whose fingerprint is pinned.
"""

import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tpi.cluster.control.messages import one_line
from tpi.cluster.pairing.hello import (
    ANSWER_MAGIC,
    AnyHello,
    ControlHello,
    DataHello,
    JoinHello,
    JoinWelcome,
    LinkWelcome,
    Purpose,
    TimedReader,
    Verdict,
    decode_body,
    pack_hello,
    read_opening,
)
from tpi.cluster.pairing.identity import Identity, IdentityStore, make_key
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.cluster.pairing.tls import peer_fingerprint, stranger_context
from tpi.errors import LinkError, PairingError, ProtocolError, TpiError
from tpi.version import PROTOCOL_VERSION, VERSION

TIMEOUT_S = 5.0
MAX_NAME_LENGTH = 63
_Welcome = TypeVar("_Welcome", JoinWelcome, LinkWelcome)


@dataclass(frozen=True)
class OpenedLink:
    """An open, authenticated connection to the master; the caller owns the socket (blocking, without a timeout)."""

    socket: ssl.SSLSocket
    address: Address
    """The one that answered; use it for the data links, too."""
    master: str
    """The master's name."""


def join(key: JoinKey, name: str, store: IdentityStore, timeout_s: float = TIMEOUT_S) -> Identity:
    """Get a certificate from the master that made ``key``, and keep it in ``store``.

    ``name`` (of ``make_device_name``) is what this device would like to be called.
    Raises PairingError, LinkError, ProtocolError.
    """
    new = make_key(name)
    hello = JoinHello(name, key.secret, new.signing_request)
    sock, address = _connect(key.addresses, stranger_context(), key.fingerprint, timeout_s)
    with sock:
        welcome = _converse(sock, address, Purpose.JOIN, hello, JoinWelcome, timeout_s)
    chain = new.key_pem + ssl.DER_cert_to_PEM_cert(welcome.certificate).encode()
    authority = ssl.DER_cert_to_PEM_cert(welcome.authority).encode()
    return store.save(key.fingerprint, welcome.name, chain, authority)


def make_device_name(text: str) -> str:
    """A device name as close to ``text``, such as a host name, as devices may have."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MAX_NAME_LENGTH].strip("-._")
    return cleaned or "device"


def find_or_join(key: JoinKey, name: str, store: IdentityStore, timeout_s: float = TIMEOUT_S) -> Identity:
    """This device's identity in the cluster of ``key``; joins when it has none."""
    return store.find(key.fingerprint) or join(key, name, store, timeout_s)


def open_control(addresses: Sequence[Address], identity: Identity, timeout_s: float = TIMEOUT_S) -> OpenedLink:
    """Open a control link to the master at the first of ``addresses`` where it answers.

    Raises LinkError, ProtocolError, and PairingError when the device was removed from the cluster.
    """
    return _open(addresses, identity, Purpose.CONTROL, ControlHello(identity.name), timeout_s)


def open_data(
    address: Address, identity: Identity, epoch: int, token: bytes, timeout_s: float = TIMEOUT_S
) -> OpenedLink:
    """Open the data link that the master asked for with ``OpenData``; raises as ``open_control``."""
    return _open([address], identity, Purpose.DATA, DataHello(identity.name, epoch, token), timeout_s)


def _open(
    addresses: Sequence[Address], identity: Identity, purpose: Purpose, hello: AnyHello, timeout_s: float
) -> OpenedLink:
    sock, address = _connect(addresses, identity.client_context(), identity.fingerprint, timeout_s)
    try:
        welcome = _converse(sock, address, purpose, hello, LinkWelcome, timeout_s)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return OpenedLink(sock, address, welcome.master)


def _connect(
    addresses: Sequence[Address], context: ssl.SSLContext, fingerprint: bytes, timeout_s: float
) -> tuple[ssl.SSLSocket, Address]:
    """TLS to the pinned master at the first address where it is; one error for all addresses otherwise."""
    failures: list[TpiError] = []
    for address in addresses:
        try:
            return _connect_one(address, context, fingerprint, timeout_s), address
        except TpiError as error:
            failures.append(error)
    # Something that answers but is not the master says more than an address where nobody is.
    worst = next((error for error in failures if not isinstance(error, LinkError)), None)
    if worst is not None:
        raise worst
    what = "; ".join(str(error) for error in failures)
    raise LinkError(f"cannot reach the master: {what}. Is `tpi serve` running there, and open in its firewall?")


def _connect_one(address: Address, context: ssl.SSLContext, fingerprint: bytes, timeout_s: float) -> ssl.SSLSocket:
    try:
        plain = socket.create_connection((address.host, address.port), timeout_s)
    except (OSError, UnicodeError) as error:
        raise LinkError(_explain_connect(address, error, timeout_s)) from None
    try:
        sock = context.wrap_socket(plain)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise _other_master(address) from None
    except TimeoutError:
        plain.close()
        raise LinkError(f"{address} accepts connections but said nothing for {timeout_s:g} s") from None
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        plain.close()
        raise LinkError(f"{address} closed the connection") from None
    except (OSError, ValueError):
        plain.close()
        raise ProtocolError(f"what answers at {address} is no tpi master: check the address and the port") from None
    if peer_fingerprint(sock) != fingerprint:
        sock.close()
        raise _other_master(address)
    return sock


def _converse(
    sock: ssl.SSLSocket,
    address: Address,
    purpose: Purpose,
    hello: AnyHello,
    welcome_type: type[_Welcome],
    timeout_s: float,
) -> _Welcome:
    """Say hello and return the answer, or raise what it says."""
    peer = f"the master at {address}"
    try:
        sock.sendall(pack_hello(purpose, hello))
    except OSError as error:
        raise LinkError(f"{peer} broke the connection off ({error.strerror or 'TLS error'})") from None
    reader = TimedReader(sock, peer, timeout_s)
    opening = read_opening(reader, ANSWER_MAGIC)
    content = reader.read(opening.n_body_bytes)
    if opening.version != PROTOCOL_VERSION:
        sentence = one_line(content.decode(errors="replace")) or "unknown"
        program = sentence if opening.kind == Verdict.OTHER_VERSION else "tpi"
        raise ProtocolError(
            f"{peer} ({program}) speaks protocol version {opening.version}, this device (tpi {VERSION}) version "
            f"{PROTOCOL_VERSION}: install the same version of tpi on both"
        )
    if opening.kind != Verdict.WELCOME:
        raise PairingError(f"{peer} refused: {one_line(content.decode(errors='replace'))}")
    return decode_body(content, welcome_type, peer)


def _explain_connect(address: Address, error: OSError | UnicodeError, timeout_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"{address} did not answer within {timeout_s:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"{address} refused the connection"
    if isinstance(error, socket.gaierror | UnicodeError):
        return f"{address.host} is an unknown host name"
    return f"{address} cannot be reached ({error.strerror or type(error).__name__})"


def _other_master(address: Address) -> PairingError:
    return PairingError(
        f"the device at {address} is not the master that made this join key: copy the key again from `tpi serve`"
    )
