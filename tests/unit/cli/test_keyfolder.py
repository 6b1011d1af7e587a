"""Folders for keys: private, removed at the end, and after a process that was killed by the next one."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tpi.cli import keyfolder
from tpi.cli.keyfolder import open_key_folder, remove_abandoned

HOLDER = """
import sys, time
from pathlib import Path
from tpi.cli.keyfolder import open_key_folder
with open_key_folder(Path(sys.argv[1])) as folder:
    (folder / "device-1").mkdir()
    (folder / "device-1" / "device.pem").write_text("secret")
    print(folder, flush=True)
    sys.stdin.read()
"""


def abandoned(parent: Path, name: str = "tpi-keys-x") -> Path:
    folder = parent / name
    folder.mkdir(mode=0o700)
    (folder / "key").write_text("secret")
    return folder


def test_it_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with open_key_folder(tmp_path) as folder:
        assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "key").write_text("secret")
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_used_stays_and_one_of_a_killed_process_goes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment) as holder:
        assert holder.stdout is not None
        theirs = Path(holder.stdout.readline().strip())
        with open_key_folder(tmp_path) as mine:
            assert (theirs / "device-1" / "device.pem").exists() and mine != theirs
            holder.send_signal(signal.SIGKILL)
            holder.wait()
            assert theirs.exists()
            with open_key_folder(tmp_path) as another:
                assert not theirs.exists() and mine.exists() and another.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_certainly_ours_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = abandoned(tmp_path, "elsewhere")
    (tmp_path / "tpi-keys-link").symlink_to(elsewhere)
    (tmp_path / "tpi-keys-file").write_text("a file")
    abandoned(tmp_path, "tpi-keys-open").chmod(0o755)
    abandoned(tmp_path, "tpi-other")
    before = sorted(tmp_path.rglob("*"))
    remove_abandoned(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before
    mine = abandoned(tmp_path)
    monkeypatch.setattr("os.geteuid", lambda: os.getuid() + 1)
    remove_abandoned(tmp_path)
    assert mine.exists(), "it is another user's"
    monkeypatch.undo()
    remove_abandoned(tmp_path)
    assert not mine.exists() and sorted(tmp_path.rglob("*")) == before
    remove_abandoned(tmp_path / "nowhere")


@pytest.mark.parametrize("is_before_opening", [True, False])
def test_one_that_is_being_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_before_opening: bool
) -> None:
    """Another process looks for abandoned folders between its making and its lock."""
    made: list[Path] = []
    open_once = keyfolder._open

    def open_slowly(folder: Path) -> int:
        is_first, lock = not made, None
        made.append(folder)
        if is_first and not is_before_opening:
            lock = open_once(folder)
        if is_first:
            monkeypatch.setattr(keyfolder, "_open", open_once)
            remove_abandoned(tmp_path)
            monkeypatch.setattr(keyfolder, "_open", open_slowly)
        return open_once(folder) if lock is None else lock

    monkeypatch.setattr(keyfolder, "_open", open_slowly)
    with open_key_folder(tmp_path) as folder:
        assert made[-1] == folder != made[0] and not made[0].exists() and len(made) == 2


def test_a_file_system_without_locks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = abandoned(tmp_path)

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError("no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with open_key_folder(tmp_path) as folder:
        assert folder.exists() and left.exists()
    assert not folder.exists()


def test_many_at_once(tmp_path: Path) -> None:
    """Nobody loses the folder that it uses."""
    errors: list[str] = []

    def work() -> None:
        for _ in range(50):
            with open_key_folder(tmp_path) as folder:
                (folder / "key").write_text("secret")
                if not (folder / "key").exists():
                    errors.append(str(folder))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and list(tmp_path.iterdir()) == []
