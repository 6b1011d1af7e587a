"""When a peer counts as lost: in less than two seconds, and not while it only stands still for one and a half."""

import time

import pytest

from tpi.cluster.control.io import ControlSettings
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import EndEpoch, Heartbeat, encode_message
from tpi.errors import LinkError
from tpi.testing.meshes import TlsPairs

STALL_S = 1.5
USUAL = ControlSettings()


def test_a_silent_peer_is_noticed_within_two_seconds(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    with called, ControlLink(accepted, "the device") as link:
        started = time.monotonic()
        with pytest.raises(LinkError, match=r"the device gave no sign of life for 1\.9 s"):
            link.receive(10)
        assert STALL_S < time.monotonic() - started < 2.0


def test_the_limit_leaves_room_for_a_stall_after_the_latest_heartbeat() -> None:
    """Whoever stands still said something up to a heartbeat before; what is left is for busy processors."""
    assert USUAL.silence_limit_s - USUAL.heartbeat_s - STALL_S >= 0.2 - 1e-9


def test_who_stands_still_and_goes_on_is_kept(tls_pairs: TlsPairs) -> None:
    accepted, called = tls_pairs.connect()
    with called, ControlLink(accepted, "the device") as link:
        for _ in range(3):
            called.sendall(encode_message(Heartbeat()))
            time.sleep(STALL_S + USUAL.heartbeat_s)
        called.sendall(encode_message(EndEpoch(7, 3)))
        assert link.receive(10) == EndEpoch(7, 3)
