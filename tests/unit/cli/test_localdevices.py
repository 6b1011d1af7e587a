"""Child processes: they get the key, end in every way that the parent ends, and leave their last words."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tpi.cli import localdevices
from tpi.cli.localdevices import LocalDevices
from tpi.config import Resources
from tpi.errors import LinkError

RESOURCES = Resources(memory_bytes=1000, window_bytes=500, n_threads=2)
FAILS = "import sys; print('a line\\ntpi: no room for me', file=sys.stderr); sys.exit(1)"
STUBBORN = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def start(program: str, n: int, folder: Path) -> LocalDevices:
    return LocalDevices(n, "tpi1-key", RESOURCES, folder, os.environ, (sys.executable, "-c", program, "x"))


def is_running(pid: int) -> bool:
    """Not even as a zombie that nobody collects, as in containers without an init process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids: tuple[int, ...], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline_s, "a child is still there"
        time.sleep(0.02)


def test_children_get_the_key_and_their_own_settings(tmp_path: Path) -> None:
    program = "import sys, pathlib; key = sys.stdin.readline().strip(); "
    program += "pathlib.Path(sys.argv[sys.argv.index('--state') + 1]).write_text(key + ' ' + ' '.join(sys.argv[1:]))"
    with start(program, 2, tmp_path) as devices:
        wait_for = [tmp_path / "device-1", tmp_path / "device-2"]
        deadline_s = time.monotonic() + 10
        while not all(path.exists() and path.read_text() for path in wait_for):
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        assert len(devices.pids) == 2
    words = (tmp_path / "device-2").read_text().split()
    assert words[:2] == ["tpi1-key", "x"]
    assert words[2:] == [
        *("--name", "local-2", "--state", str(tmp_path / "device-2"), "--threads", "2"),
        *("--memory", "1000", "--window", "500"),
    ]


def test_not_all_start_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localdevices, "_AT_ONCE", 2)
    with start("import sys; sys.stdin.read()", 4, tmp_path) as devices:
        counts = []
        for n_joined in (0, 1, 1, 4):
            devices.start_more(n_joined)
            counts.append(len(devices.pids))
        assert counts == [2, 3, 3, 4]


def test_children_end_with_their_pipe(tmp_path: Path) -> None:
    with start("import sys; sys.stdin.read()", 3, tmp_path) as devices:
        pids = devices.pids
        devices.check()
        assert devices.explain(wait_s=0.0) is None
        began_s = time.monotonic()
    assert time.monotonic() - began_s < localdevices._END_S
    wait_for_end(pids)
    devices.close()


def test_a_child_that_ends_early_is_reported_with_its_last_line(tmp_path: Path) -> None:
    with start(FAILS, 1, tmp_path) as devices:
        error = devices.explain(wait_s=10.0)
        assert error is not None and str(error) == "the process of local-1 ended: no room for me"
        with pytest.raises(LinkError, match="no room for me"):
            devices.check()


def test_a_child_that_is_killed_is_reported(tmp_path: Path) -> None:
    with start("import sys; sys.stdin.read()", 2, tmp_path) as devices:
        os.kill(devices.pids[1], signal.SIGKILL)
        error = devices.explain(wait_s=10.0)
        assert str(error) == "the process of local-2 ended: killed by signal 9 (out of memory?)"


def test_stubborn_children_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localdevices, "_END_S", 1.0)
    monkeypatch.setattr(localdevices, "_TERMINATE_S", 0.2)
    devices = start(STUBBORN, 2, tmp_path)
    pids = devices.pids
    devices.close()
    wait_for_end(pids)


def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from tpi.cli.localdevices import LocalDevices
from tpi.config import Resources
command = (sys.executable, "-c", "import sys; sys.stdin.read()")
devices = LocalDevices(2, "key", Resources(), Path("."), dict(os.environ), command)
print(*devices.pids, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = tuple(map(int, parent.stdout.readline().split()))
        assert len(pids) == 2 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        parent.kill()
    wait_for_end(pids)


def test_a_command_that_does_not_exist_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match="cannot start 2 more processes"):
        LocalDevices(2, "key", RESOURCES, tmp_path, {}, (str(tmp_path / "missing"),))
