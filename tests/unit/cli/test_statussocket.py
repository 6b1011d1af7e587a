"""The status socket: who may ask, what is answered, what crashes leave behind."""

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.unit.cli.states import cluster_state
from tpi.cli.status import describe
from tpi.cli.statussocket import StatusServer, ask, choose_master, find_masters
from tpi.cluster.reports import AnswerFigures, ClusterStatus
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


def test_a_defect_of_the_source_is_told_and_does_not_end_the_answers(folder: Path) -> None:
    errors: list[Exception] = [IndexError("rank 3"), AssertionError(), MemoryError(), LinkError("still starting")]
    notes: list[str] = []

    def source() -> ClusterStatus:
        if errors:
            raise errors.pop(0)
        return cluster_state()

    with StatusServer(folder, source, note=notes.append):
        for said in (
            r"IndexError: rank 3\): this is a defect of tpi$",
            "AssertionError",
            "MemoryError",
            "^still starting$",
        ):
            with pytest.raises(LinkError, match=said):
                ask(choose_master(folder))
        assert ask(choose_master(folder)) == cluster_state()
    assert len(notes) == 3 and notes[0] == "the state cannot be told (IndexError: rank 3): this is a defect of tpi"


def test_too_many_open_files_do_not_end_the_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StatusServer(folder, cluster_state) as server:
        refusing, accept, n_refused = threading.Event(), server._socket.accept, []
        refusing.set()

        class Full:
            """A listening socket of a process that can open nothing more."""

            def accept(self) -> tuple[socket.socket, object]:
                if refusing.is_set():
                    n_refused.append(1)
                    raise OSError(errno.EMFILE, "Too many open files")
                return accept()

            def shutdown(self, how: int) -> None:
                whole.shutdown(how)

            def close(self) -> None:
                whole.close()

        whole = server._socket
        monkeypatch.setattr(server, "_socket", Full())
        assert ask(choose_master(folder)) == cluster_state()  # the thread was waiting in the real one
        deadline_s = time.monotonic() + 10
        while len(n_refused) < 3:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        refusing.clear()
        assert ask(choose_master(folder)) == cluster_state()


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
    assert lines[0] == "story (abababababab), context 256, epoch 1"
    assert [line.split()[:3] for line in lines[2:5]] == [[str(i), f"device-{i}", "25"] for i in range(3)]
    assert "2 of 9" in lines[2]


def test_below_the_table_stands_how_sums_are_added_up() -> None:
    assert describe(cluster_state(3))[5:] == [
        "links: 0.5 ms one way, 100 Mbit/s for each device while all send",
        "sums of up to 8 tokens: one-shot in f16 (1 token in 1.0 ms, foretold 0.9 ms); "
        "tried as well: star in f16 (1 token in 2.5 ms, foretold 2.0 ms)",
        "longer: two-shot in f16 (64 tokens in 4.0 ms, foretold 3.0 ms)",
        "device-1 and device-2 reach each other through the master only: device-2 takes no calls",
    ]
    assert len(describe(cluster_state(1))) == 3


def test_choices_that_were_made_anew_are_told() -> None:
    state = cluster_state(3)
    ranks = tuple(msgspec.structs.replace(rank, n_rechosen=rank.rank) for rank in state.ranks)
    line = "devices chose different experts 2 times; the lowest rank's were taken"
    assert line in describe(msgspec.structs.replace(state, ranks=ranks)) and line not in describe(state)


def test_silent_devices_and_notes_stand_at_the_end() -> None:
    status = msgspec.structs.replace(cluster_state(1), silent=("attic", "cellar"), notes=("turned away a: b",))
    *_, silent, note = describe(status)
    assert silent.startswith("no answer from attic, cellar") and note == "turned away a: b"


def test_what_was_answered_is_told() -> None:
    status = msgspec.structs.replace(cluster_state(1), answers=AnswerFigures(1, 2, 7000, 3000, 400))
    assert describe(status)[-1] == (
        "1 answers under way, 2 wait; so far prompts of 7,000 tokens, 3,000 of them not computed again, and answers "
        "of 400"
    )
