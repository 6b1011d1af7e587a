"""Where the join key comes from, what becomes the worker's settings, and ending with standard input."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tpi.cli import join
from tpi.cli.environment import JOIN_KEY
from tpi.cli.main import main
from tpi.cluster.reports import Report
from tpi.config import WorkerSettings

SECRET = "tpi1-verysecret"


class Joined:
    """What ``run_worker`` was called with."""

    settings: WorkerSettings | None = None


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Joined:
    joined = Joined()

    class Kernels:
        def require(self, types: object) -> None:
            """All there."""

    def run_worker(settings: WorkerSettings, report: Report) -> None:
        joined.settings = settings

    monkeypatch.delenv(JOIN_KEY, raising=False)
    monkeypatch.setenv("TPI_HOME", str(tmp_path))
    monkeypatch.setattr(join, "run_worker", run_worker)
    monkeypatch.setattr(join, "probe_kernels", lambda cache: Kernels())
    return joined


def test_the_key_as_an_argument(joined: Joined, tmp_path: Path) -> None:
    arguments = ["join", SECRET, "--master", "10.0.0.1:7600", "--memory", "1GiB", "--window", "1MB", "--threads", "3"]
    assert main([*arguments, "--name", "attic"]) == 0
    settings = joined.settings
    assert settings is not None
    assert (settings.key, settings.master, settings.name) == (SECRET, "10.0.0.1:7600", "attic")
    assert settings.resources.memory_bytes == 1 << 30
    assert settings.resources.window_bytes == 1_000_000
    assert settings.resources.n_threads == 3
    assert settings.folders.state == tmp_path / "state"


def test_the_demo_as_the_copy_of_the_model(
    joined: Joined, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["join", SECRET, "--model", "demo"]) == 0
    assert joined.settings is not None and joined.settings.model is not None and joined.settings.model.is_file()
    assert main(["join", SECRET, "--model", "gone.gguf"]) == 1
    assert "there is no file gone.gguf" in capsys.readouterr().err


def test_the_key_in_a_file(joined: Joined, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{SECRET}\n")
    assert main(["join", "--key-file", str(file)]) == 0
    assert joined.settings is not None and joined.settings.key == SECRET


def test_the_key_in_the_environment(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOIN_KEY, SECRET)
    assert main(["join"]) == 0
    assert joined.settings is not None and joined.settings.key == SECRET


def test_an_argument_wins_over_the_environment(joined: Joined, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(JOIN_KEY, "tpi1-other")
    assert main(["join", SECRET]) == 0
    assert joined.settings is not None and joined.settings.key == SECRET


def test_a_local_rank_has_a_state_of_its_own(joined: Joined, tmp_path: Path) -> None:
    assert main(["join", SECRET, "--state", str(tmp_path / "own")]) == 0
    assert joined.settings is not None
    assert joined.settings.folders.state == tmp_path / "own"
    assert joined.settings.folders.shards == tmp_path / "shards"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["join"], "TPI_JOIN_KEY"),
        (["join", SECRET, "--key-file", "x"], "exclude each other"),
        (["join", "--key-file", "missing"], "cannot read --key-file missing"),
        (["join", SECRET, "--shard", "a", "--model", "b"], "exclude each other"),
        (["join", SECRET, "--name", "a b"], "--name"),
    ],
)
def test_wrong_usage(joined: Joined, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and "verysecret" not in error
    assert joined.settings is None


def test_a_key_file_of_something_else_is_not_read_whole(joined: Joined, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["join", "--key-file", "/dev/zero"]) == 1
    assert "no join key is so long" in capsys.readouterr().err


def start_child(program: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", program]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment)


WORKER = """
import signal, sys, threading
from tpi.cli import join, main
class Kernels:
    def require(self, types): pass
def run_worker(settings, report):
    try:
        {work}
        print(settings.key, flush=True)  # in here, and last: its reader may end us as soon as it is out
        threading.Event().wait({wait_s})
    finally:
        print("closed", flush=True)
join.run_worker = run_worker
join.probe_kernels = lambda cache: Kernels()
join._END_S = {end_s}
sys.exit(main.main(["join", "-", "--while-stdin"]))
"""


@pytest.mark.parametrize(
    ("work", "end_s", "last_words"),
    [("pass", 60.0, "closed\n"), ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0.5, "")],
    ids=["in order", "anyway"],
)
def test_a_local_rank_ends_with_its_standard_input(work: str, end_s: float, last_words: str) -> None:
    with start_child(WORKER.format(work=work, wait_s=120, end_s=end_s)) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(f"{SECRET}\n")
        child.stdin.flush()
        assert child.stdout.readline() == f"{SECRET}\n"
        assert child.poll() is None
        out, err = child.communicate(timeout=60)
    assert (out, err, child.returncode) == (last_words, "", 128 + signal.SIGTERM)


def test_no_line_is_no_key() -> None:
    with start_child(WORKER.format(work="pass", wait_s=0, end_s=60)) as child:
        _, err = child.communicate(timeout=20)
    assert child.returncode == 2
    assert err == "tpi: there is no join key on standard input: send one line with the key\n"
