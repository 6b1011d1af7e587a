"""Tokens that tie a data connection to the control link over which its owner was told to open it. Any thread."""

import hmac
import secrets
import threading

from tpi.errors import PairingError

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
