"""What stand-ins say. That they take part in passes, clusters of them show."""

from pathlib import Path
from unittest.mock import Mock

from bench.standins import StandIn
from tpi.cluster.control.messages import StatusRequest


def test_a_question_about_status_is_answered(tmp_path: Path) -> None:
    """Or else the master waits two seconds for it, around every answer."""
    device = StandIn(Mock(), "one", tmp_path)
    device._control = Mock()
    device._take(StatusRequest(7))
    reply = device._control.send.call_args.args[0]
    assert (reply.number, reply.status.name, reply.status.n_passes) == (7, "one", 0)
