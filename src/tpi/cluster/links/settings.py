"""Times and bounds of links, parsed elsewhere; data only."""

import msgspec


class ControlSettings(msgspec.Struct, frozen=True):
    """Of a control link."""

    heartbeat_s: float = 0.5
    silence_limit_s: float = 5.0
    """A peer from which nothing at all came for so long is lost."""
    max_outbox_bytes: int = 1 << 20
    """``wait_send`` waits while more than this would be queued."""
    max_inbox_bytes: int = 8 << 20
    """Nothing is read from the peer while more than this waits for ``receive``."""
    linger_s: float = 1.0
    """How long ``close`` tries to get out what is queued."""
