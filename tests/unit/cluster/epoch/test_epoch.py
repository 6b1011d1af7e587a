"""An epoch's answers to orders: a disk that is slow ends nothing, a worker that is gone does."""

from types import SimpleNamespace
from typing import cast

import pytest

from tpi.cluster.control.messages import PrefixDone, StatusReply
from tpi.cluster.epoch.epoch import wait_done
from tpi.cluster.membership.member import Answer, Member
from tpi.errors import LinkError


def member_of(message: PrefixDone | StatusReply | None, end: LinkError | None = None) -> Member:
    answer = None if message is None else Answer(message, 0.0)
    return cast(Member, SimpleNamespace(wait_answer=lambda number, limit_s: answer, end=end))


def test_what_came_of_an_order() -> None:
    assert wait_done(member_of(PrefixDone(7, 100)), 7, 0.5) == PrefixDone(7, 100)
    late = wait_done(member_of(None), 7, 0.5)
    assert (late.n_bytes, late.refusal.partition(":")[0]) == (0, "its disk needs more than 0.5 s")
    with pytest.raises(LinkError, match="w1 is gone"):
        wait_done(member_of(None, LinkError("w1 is gone")), 7, 0.5)
