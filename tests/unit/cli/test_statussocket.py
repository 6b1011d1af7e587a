"""The status socket: who may ask, what is answered, what crashes leave behind."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.states import cluster_state
from tpi.cli.status import describe
from tpi.cli.statussocket import StatusServer, ask, choose_master, find_masters
from tpi.cluster.reports import ClusterStatus
from tpi.errors import LinkError, ProtocolError, UsageError


@pytest.fixture(params=["short", "a-folder-with-a-name-that-is-much-longer-than-the-address-of-a-socket-can-be" * 2])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param) / "run"


@pytest.fixture
def server(folder: Path) -> Iterator[StatusServer]:
    with StatusServer(folder, cluster_state) as server:
        yield server


def test_the_state_arrives_whole(server: StatusServer, folder: Path) -> None:
    assert ask(choose_master(folder)) == cluster_state()
    assert ask(choose_master(folder, os.getpid())) == cluster_state()


def test_only_the_owner_may_ask(server: StatusServer, folder: Path) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_error_is_told(folder: Path) -> None:
    def fail() -> ClusterStatus:
        raise LinkError("still starting")

    with StatusServer(folder, fail), pytest.raises(LinkError, match=r"^still starting$"):
        ask(choose_master(folder))


def test_nothing_is_left_after_the_end(folder: Path) -> None:
    server = StatusServer(folder, cluster_state)
    server.close()
    server.close()
    assert list(folder.iterdir()) == []
    with pytest.raises(UsageError, match="no cluster is running"):
        choose_master(folder)


def test_what_a_crashed_master_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f"status-{ended.pid}.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(left))
    (tmp_path / "status-x.sock").touch()
    assert find_masters(tmp_path) == []
    assert not left.exists()


def test_several_masters_need_a_choice(tmp_path: Path) -> None:
    with StatusServer(tmp_path, cluster_state), StatusServer(tmp_path, cluster_state, pid=os.getppid()):
        with pytest.raises(UsageError, match=f"--pid with one of .*{os.getpid()}"):
            choose_master(tmp_path)
        assert choose_master(tmp_path, os.getpid()).pid == os.getpid()
        with pytest.raises(UsageError, match="process 99999999 is no master"):
            choose_master(tmp_path, 99_999_999)


def test_a_socket_that_nobody_serves_is_an_error_of_ours(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / f"status-{os.getpid()}.sock"))
    with pytest.raises(LinkError, match="does not tell its state"):
        ask(choose_master(tmp_path))


def test_an_answer_of_another_kind_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tpi.cli.statussocket.MAX_REPLY_BYTES", 10)
    with StatusServer(tmp_path, cluster_state), pytest.raises(LinkError, match="too long"):
        ask(choose_master(tmp_path))
    monkeypatch.setattr("tpi.cli.statussocket._read_all", lambda link: b"[1]")
    with StatusServer(tmp_path, cluster_state), pytest.raises(ProtocolError):
        ask(choose_master(tmp_path))


def test_the_table_shows_every_rank() -> None:
    lines = describe(cluster_state(3))
    assert "story" in lines[0] and "f16" in lines[0]
    assert [line.split()[:3] for line in lines[2:]] == [[str(i), f"device-{i}", "25"] for i in range(3)]
    assert "2 of 9" in lines[2]
