"""Who may come in: what an acceptor asks, in its handshake threads. ``master_gate`` answers for a master."""

import ssl
from typing import Protocol, TypeAlias

from tpi.cluster.pairing.opening import ControlHello, DataHello, JoinHello, JoinWelcome, LinkWelcome
from tpi.cluster.pairing.tls import Device

LinkHello: TypeAlias = ControlHello | DataHello


class Gate(Protocol):
    """What an acceptor asks. Methods are called from several threads, block little, and refuse with a TpiError."""

    def server_context(self) -> ssl.SSLContext:
        """TLS for the listening end."""

    def join(self, hello: JoinHello) -> JoinWelcome:
        """Admit a device without a certificate, or raise."""

    def admit(self, device: Device, hello: LinkHello) -> LinkWelcome:
        """Let a device with a certificate of this cluster open a link, or raise."""
