"""Who may come in: what an acceptor asks in its handshake threads, a worker's answers, and the tokens of expected
links.

A master's answers stand in ``authority``. Sends nothing. Any thread.
"""

import hmac
import secrets
import ssl
import threading
from collections.abc import Mapping
from typing import Protocol, TypeAlias

from tpi.cluster.pairing.hello import ControlHello, DataHello, JoinHello, JoinWelcome, LinkWelcome, RelayHello
from tpi.cluster.pairing.identity import Identity
from tpi.cluster.pairing.tls import Device
from tpi.errors import PairingError

LinkHello: TypeAlias = ControlHello | DataHello | RelayHello


class Gate(Protocol):
    """What an acceptor asks. Methods are called from several threads, block little, and refuse with a TpiError."""

    def server_context(self) -> ssl.SSLContext:
        """TLS for the listening end."""

    def join(self, hello: JoinHello) -> JoinWelcome:
        """Admit a device without a certificate, or raise."""

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """Let a device with a certificate of this cluster open a link, or raise."""


TOKEN_BYTES = 16


class LinkTokens:
    """Tokens that tie a connection to the control link over which its owner was told to open it: each for one device
    and epoch, used once. Owned by whoever admits the connections."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._issued: list[tuple[str, int, bytes]] = []

    def issue(self, device: str, epoch: int) -> bytes:
        """A token for ``device``, to be sent to it over its control link; those of earlier epochs end."""
        token = secrets.token_bytes(TOKEN_BYTES)
        with self._mutex:
            self._issued = [entry for entry in self._issued if entry[1] >= epoch]
            self._issued.append((device, epoch, token))
        return token

    def expect(self, device: str, epoch: int, token: bytes) -> None:
        """A token that somebody else has issued."""
        with self._mutex:
            self._issued = [entry for entry in self._issued if entry[1] >= epoch]
            self._issued.append((device, epoch, token))

    def redeem(self, device: str, epoch: int, token: bytes) -> None:
        """Uses up a token; raises PairingError when it was not issued for this device and epoch."""
        with self._mutex:
            for entry in self._issued:
                if entry[:2] == (device, epoch) and hmac.compare_digest(entry[2], token):
                    self._issued.remove(entry)
                    return
        raise PairingError(f"the data link of {device} for epoch {epoch} was not asked for, or no longer is")


class WorkerGate:
    """Satisfies ``Gate`` on a worker: lets in the workers that the master has announced, and nobody else."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._tokens = LinkTokens()
        self._mutex = threading.Lock()
        self._serials: frozenset[int] = frozenset()

    def server_context(self) -> ssl.SSLContext:
        """See ``Gate``; who has no certificate of this cluster does not get through the handshake."""
        return self._identity.server_context()

    def announce(self, epoch: int, callers: Mapping[Device, bytes]) -> None:
        """From now on the callers may open data links, with their tokens, and no others."""
        for device, token in callers.items():
            self._tokens.expect(device.name, epoch, token)
        with self._mutex:
            self._serials = frozenset(device.serial for device in callers)

    def revoke(self, serial: int) -> None:
        """The device with this certificate may not any more."""
        with self._mutex:
            self._serials -= {serial}

    def join(self, hello: JoinHello) -> JoinWelcome:
        """See ``Gate``."""
        raise PairingError("this device is a worker: join at its master")

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """See ``Gate``."""
        with self._mutex:
            is_expected = device.serial in self._serials
        if not is_expected or not isinstance(hello, DataHello) or hello.name != device.name:
            raise PairingError(f"{device.name} was not announced by the master")
        self._tokens.redeem(device.name, hello.epoch, hello.token)
        return LinkWelcome(self._identity.name)
