"""The master's decisions on who may come in. Runs in the acceptor's handshake threads; sends nothing.

Master only: ``authority`` loads ``cryptography``.
"""

import ssl

from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.gate import LinkHello
from tpi.cluster.pairing.opening import DataHello, JoinHello, JoinWelcome, LinkWelcome
from tpi.cluster.pairing.tls import Device
from tpi.cluster.pairing.tokens import DataTokens
from tpi.errors import PairingError


class MasterGate:
    """Satisfies ``gate.Gate``: its authority knows the devices, its tokens the data links that are expected."""

    def __init__(self, authority: Authority, tokens: DataTokens) -> None:
        self._authority = authority
        self._tokens = tokens

    def server_context(self) -> ssl.SSLContext:
        """See ``Gate``."""
        return self._authority.server_context()

    def join(self, hello: JoinHello) -> JoinWelcome:
        """See ``Gate``."""
        return self._authority.admit(hello)

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """See ``Gate``."""
        self._authority.check(device)
        if hello.name != device.name:
            raise PairingError(f"the device {device.name} calls itself {hello.name}: let it join again")
        if isinstance(hello, DataHello):
            self._tokens.redeem(device.name, hello.epoch, hello.token)
        return LinkWelcome(self._authority.master_name)
