"""Who may come in: what an acceptor asks in its handshake threads, and the tokens of the data links that are expected.

A master's answers stand in ``authority``. Sends nothing. Any thread.
"""

import hmac
import secrets
import ssl
import threading
from typing import Protocol, TypeAlias

from tpi.cluster.pairing.hello import ControlHello, DataHello, JoinHello, JoinWelcome, LinkWelcome
from tpi.cluster.pairing.tls import Device
from tpi.errors import PairingError

LinkHello: TypeAlias = ControlHello | DataHello


class Gate(Protocol):
    """What an acceptor asks. Methods are called from several threads, block little, and refuse with a TpiError."""

    def server_context(self) -> ssl.SSLContext:
        """TLS for the listening end."""

    def join(self, hello: JoinHello) -> JoinWelcome:
        """Admit a device without a certificate, or raise."""

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """Let a device with a certificate of this cluster open a link, or raise."""


TOKEN_BYTES = 16


class DataTokens:
    """One valid token per device, for one epoch, used once. Owned by whoever admits data connections."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._issued: dict[str, tuple[int, bytes]] = {}

    def issue(self, device: str, epoch: int) -> bytes:
        """A token for ``device``, to be sent to it over its control link; replaces an earlier one."""
        token = secrets.token_bytes(TOKEN_BYTES)
        with self._mutex:
            self._issued[device] = (epoch, token)
        return token

    def redeem(self, device: str, epoch: int, token: bytes) -> None:
        """Use up a token; raises PairingError when it is not the one issued last, for this device and epoch."""
        with self._mutex:
            issued_epoch, issued = self._issued.get(device, (-1, b""))
            if issued_epoch != epoch or not hmac.compare_digest(issued, token):
                raise PairingError(f"the data link of {device} for epoch {epoch} was not asked for, or no longer is")
            del self._issued[device]
