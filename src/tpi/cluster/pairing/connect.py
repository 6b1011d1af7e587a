"""Calling a master, or another worker: joining a cluster, opening control and data links. Keeps no state; blocks.

Whatever can go wrong is one line that says with whom, what, and what to do. Nothing is sent, the secret least of all,
before a master has shown the certificate whose fingerprint is pinned, or a worker the one that the master announced.
"""

import re
import socket
import ssl
from collections.abc import Callable, Sequence
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
    RelayHello,
    TimedReader,
    Verdict,
    decode_body,
    pack_hello,
    read_opening,
)
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.cluster.pairing.tls import Device, peer_device, peer_fingerprint, stranger_context
from tpi.errors import LinkError, PairingError, ProtocolError, RemovedError, TpiError
from tpi.version import PROTOCOL_VERSION, VERSION

TIMEOUT_S = 5.0
MAX_NAME_LENGTH = 63
_Welcome = TypeVar("_Welcome", JoinWelcome, LinkWelcome)


@dataclass(frozen=True)
class _Callee:
    """Who is called, whether it is the one that answers, and what to say if somebody else does."""

    title: str
    is_there: Callable[[ssl.SSLSocket], bool]
    describe_other: Callable[[Address], PairingError]
    advice: str = ""


@dataclass(frozen=True)
class OpenedLink:
    """An open, authenticated connection; the caller owns the socket (blocking, without a timeout)."""

    socket: ssl.SSLSocket
    address: Address
    """The one that answered."""
    host: str
    """What the device that answered is called."""


def join(key: JoinKey, name: str, store: IdentityStore, timeout_s: float = TIMEOUT_S) -> Identity:
    """Get a certificate from the master that made ``key``, and keep it in ``store``.

    ``name`` (of ``make_device_name``) is what this device would like to be called.
    Raises PairingError, LinkError, ProtocolError.
    """
    new = store.new_key(key.fingerprint, name)
    hello = JoinHello(name, key.secret, new.signing_request)
    sock, address = _connect(key.addresses, stranger_context(), _pinned(key.fingerprint), timeout_s)
    with sock:
        welcome = _converse(sock, f"the master at {address}", Purpose.JOIN, hello, JoinWelcome, timeout_s)
    chain = new.key_pem + ssl.DER_cert_to_PEM_cert(welcome.certificate).encode()
    authority = ssl.DER_cert_to_PEM_cert(welcome.authority).encode()
    return store.save(key.fingerprint, name, welcome.name, chain, authority)


def make_device_name(text: str) -> str:
    """A device name as close to ``text``, such as a host name, as devices may have."""
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:MAX_NAME_LENGTH].strip("-._")
    return cleaned or "device"


def find_or_join(key: JoinKey, name: str, store: IdentityStore, timeout_s: float = TIMEOUT_S) -> Identity:
    """This device's identity in the cluster of ``key``; joins when it has none."""
    return store.find(key.fingerprint, name) or join(key, name, store, timeout_s)


def enter_cluster(key: JoinKey, name: str, store: IdentityStore) -> tuple[OpenedLink, Identity]:
    """The control link of the device ``name``, and who it is. One that its master has removed, and that got a new key,
    joins anew; raises as ``join`` and ``open_control``."""
    known = store.find(key.fingerprint, name)
    identity = find_or_join(key, name, store)
    try:
        return open_control(key.addresses, identity), identity
    except RemovedError:
        if known is None:
            raise
    store.forget(key.fingerprint, name)
    identity = find_or_join(key, name, store)
    return open_control(key.addresses, identity), identity


def open_control(addresses: Sequence[Address], identity: Identity, timeout_s: float = TIMEOUT_S) -> OpenedLink:
    """Open a control link to the master at the first of ``addresses`` where it answers.

    Raises LinkError, ProtocolError, and RemovedError when the device was removed from the cluster.
    """
    hello = ControlHello(identity.name)
    return _open(addresses, identity, Purpose.CONTROL, hello, _pinned(identity.fingerprint), timeout_s)


def open_data(
    address: Address, identity: Identity, epoch: int, token: bytes, timeout_s: float = TIMEOUT_S
) -> OpenedLink:
    """Open the data link that the master asked for; raises as ``open_control``."""
    hello = DataHello(identity.name, epoch, token)
    return _open([address], identity, Purpose.DATA, hello, _pinned(identity.fingerprint), timeout_s)


def open_relay(
    address: Address, identity: Identity, epoch: int, token: bytes, timeout_s: float = TIMEOUT_S
) -> OpenedLink:
    """Open this side of a data link that the master passes on; raises as ``open_control``."""
    hello = RelayHello(identity.name, epoch, token)
    return _open([address], identity, Purpose.RELAY, hello, _pinned(identity.fingerprint), timeout_s)


def open_peer(
    addresses: Sequence[Address],
    identity: Identity,
    peer: Device,
    epoch: int,
    token: bytes,
    timeout_s: float = TIMEOUT_S,
) -> OpenedLink:
    """Open a data link to another worker, which must show the certificate of ``peer``; raises as ``open_control``."""
    hello = DataHello(identity.name, epoch, token)
    return _open(addresses, identity, Purpose.DATA, hello, _announced(peer), timeout_s)


def _pinned(fingerprint: bytes) -> _Callee:
    """The master whose certificate is pinned."""

    advice = ". Is `tpi serve` running there, and open in its firewall?"
    return _Callee("the master", lambda sock: peer_fingerprint(sock) == fingerprint, _other_master, advice)


def _announced(peer: Device) -> _Callee:
    """The worker that the master has announced."""

    def other(address: Address) -> PairingError:
        return PairingError(f"the device at {address} is not {peer.name}")

    return _Callee(peer.name, lambda sock: peer_device(sock) == peer, other)


def _open(
    addresses: Sequence[Address],
    identity: Identity,
    purpose: Purpose,
    hello: AnyHello,
    callee: _Callee,
    timeout_s: float,
) -> OpenedLink:
    sock, address = _connect(addresses, identity.client_context(), callee, timeout_s)
    try:
        peer = f"{callee.title} at {address}"
        welcome = _converse(sock, peer, purpose, hello, LinkWelcome, timeout_s)
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return OpenedLink(sock, address, welcome.host)


def _connect(
    addresses: Sequence[Address], context: ssl.SSLContext, callee: _Callee, timeout_s: float
) -> tuple[ssl.SSLSocket, Address]:
    """TLS to the first address where the right device is; one error for all addresses otherwise."""
    failures: list[TpiError] = []
    for address in addresses:
        try:
            return _connect_one(address, context, callee, timeout_s), address
        except TpiError as error:
            failures.append(error)
    # Something that answers but is somebody else says more than an address where nobody is.
    worst = next((error for error in failures if not isinstance(error, LinkError)), None)
    if worst is not None:
        raise worst
    what = "; ".join(str(error) for error in failures)
    raise LinkError(f"cannot reach {callee.title}: {what}{callee.advice}")


def _connect_one(address: Address, context: ssl.SSLContext, callee: _Callee, timeout_s: float) -> ssl.SSLSocket:
    try:
        plain = socket.create_connection((address.host, address.port), timeout_s)
    except (OSError, UnicodeError) as error:
        raise LinkError(_explain_connect(address, error, timeout_s)) from None
    try:
        sock = context.wrap_socket(plain)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise callee.describe_other(address) from None
    except TimeoutError:
        plain.close()
        raise LinkError(f"{address} accepts connections but said nothing for {timeout_s:g} s") from None
    except (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
        plain.close()
        raise LinkError(f"{address} closed the connection") from None
    except (OSError, ValueError):
        plain.close()
        raise ProtocolError(
            f"what answers at {address} is not {callee.title}: check the address and the port"
        ) from None
    if not callee.is_there(sock):
        sock.close()
        raise callee.describe_other(address)
    return sock


def _converse(
    sock: ssl.SSLSocket, peer: str, purpose: Purpose, hello: AnyHello, welcome_type: type[_Welcome], timeout_s: float
) -> _Welcome:
    """Say hello and return the answer, or raise what it says."""
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
    if opening.kind == Verdict.REMOVED:
        raise RemovedError(f"{peer} refused: {one_line(content.decode(errors='replace'))}")
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
