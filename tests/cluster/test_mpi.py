"""``mpiexec -n 4 tpi run``: the processes answer like the same cluster without MPI, and end together, with a reason.

Sums themselves: ``tests/unit/cluster/allreduce/test_mpi.py``.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cluster.commands import Home, Running
from tests.models import write_random_model
from tests.unit.cluster.allreduce.mpi_processes import find_mpiexec, mpi_command
from tpi.cli.environment import find_mpi_place

NOTICED_S = 4.0
MPIEXEC = find_mpiexec()
needs_mpi = pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec here")
QUESTION = "Tell me a story about a fox and a lantern."
EXACT = ["--temperature", "0", "--threads", "1", "--shares", "3,2,2,1"]


def mpi(n: int) -> list[str]:
    assert MPIEXEC is not None
    return mpi_command(MPIEXEC, n)


def process(home: Home, number: int) -> int:
    """The number-th process of ``mpiexec``."""
    for pid in home.pids():
        variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
        place = find_mpi_place(dict(entry.split("=", 1) for entry in variables if "=" in entry))
        if place is not None and place.number == number:
            return pid
    raise AssertionError(f"there is no process {number}")


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that talks for seconds."""
    path = tmp_path_factory.mktemp("talkative") / "talkative.gguf"
    return write_random_model(
        path, n_layers=12, n_embd=512, n_heads=8, n_ff=1536, types="Q4_0", context=4096, ends=False
    )


def start_talking(home: Home, model: Path) -> Running:
    """Three processes in the middle of an answer."""
    arguments = ["--threads", "1", "--raw", "--temperature", "0", "--max-tokens", "4000"]
    running = home.start("run", str(model), "w1 w2 w3", *arguments, through=mpi(3))
    assert running.process.stdout is not None and os.read(running.process.stdout.fileno(), 1)
    return running


@needs_mpi
def test_four_processes_tell_the_story_of_four_devices(home: Home) -> None:
    """Few values are added as one-shot does it: equal partition, payload and passes, so equal bits. A prompt of several
    passes is summed in parts, in the order of two-shot."""
    with home.start("run", "demo", QUESTION, *EXACT, "--max-tokens", "96", through=mpi(4)) as running:
        told = running.wait()
    assert told.code == 0, told.err
    assert re.search(r"ready: 4 devices work, context \d+; sums by mpi in f16", told.err)
    assert home.left_behind() == []
    expected = home.run(
        "run", "demo", QUESTION, *EXACT, "--max-tokens", "96", "--local-devices", "4", "--allreduce", "one-shot"
    )
    assert expected.code == 0, expected.err
    assert told.out == expected.out and len(told.out) > 200


@needs_mpi
def test_a_layout_of_pairs(home: Home) -> None:
    """Each pair adds by itself, and hands over to the next; the prompt comes on standard input."""
    layout = ["--layout", "0-1:mpi-0,mpi-2 2-3:mpi-1,mpi-3", "--max-tokens", "8", "--temperature", "0"]
    with home.start("run", "demo", "-", *layout, "--threads", "1", through=mpi(4)) as running:
        told = running.wait(QUESTION)
    assert told.code == 0 and told.out.strip(), told.err
    assert "sums by mpi" in told.err


@needs_mpi
def test_a_killed_process_ends_all(home: Home, talkative: Path) -> None:
    with start_talking(home, talkative) as running:
        os.kill(process(home, 1), signal.SIGKILL)
        ended_s = time.monotonic()
        ended = running.wait()
        assert ended.code != 0 and time.monotonic() - ended_s < NOTICED_S
        # mpiexec kills the others at once, and says so itself, if it does not leave that to us.
        assert "signal 9" in ended.out + ended.err or "tpi: mpi-1 " in ended.err
    home.wait_until_quiet(NOTICED_S)


@needs_mpi
@pytest.mark.parametrize(("number", "words"), [(1, "tpi: mpi-1 (rank "), (0, "")])
def test_a_process_that_is_told_to_end_ends_all(home: Home, talkative: Path, number: int, words: str) -> None:
    """A worker's reason is told by the master; who ended the master knows why."""
    with start_talking(home, talkative) as running:
        os.kill(process(home, number), signal.SIGTERM)
        ended_s = time.monotonic()
        ended = running.wait()
        assert ended.code != 0 and time.monotonic() - ended_s < NOTICED_S
        assert words in ended.err and "Traceback" not in ended.err
    home.wait_until_quiet(NOTICED_S)


@needs_mpi
def test_ctrl_c_ends_the_answer_and_all(home: Home, talkative: Path) -> None:
    """It comes to all processes; only the master heeds it."""
    with start_talking(home, talkative) as running:
        for number in (2, 1, 0):
            os.kill(process(home, number), signal.SIGINT)
        ended = running.wait()
        assert ended.code != 0 and "tpi: the answer was cancelled" in ended.err and "Traceback" not in ended.err
    home.wait_until_quiet(NOTICED_S)
    assert home.left_behind() == []


@needs_mpi
def test_no_model_ends_all(home: Home) -> None:
    """The others, which wait for a key, learn that there is none."""
    with home.start("run", "missing.gguf", "x", through=mpi(3)) as running:
        ended = running.wait()
    told = [line for line in ended.err.splitlines() if line.startswith("tpi: ")]
    assert ended.code == 1 and len(told) == 1 and "missing.gguf" in told[0]


def test_mpi_without_mpiexec_is_refused(home: Home) -> None:
    for verb in (["run", "demo", "x"], ["serve", "demo"]):
        ended = home.run(*verb, "--allreduce", "mpi")
        assert ended.code == 2 and len(ended.err.splitlines()) == 1 and "mpiexec -n N tpi run" in ended.err


def test_local_devices_under_mpiexec_are_refused_once(home: Home) -> None:
    """By the first process on each machine; as ``mpiexec`` would start them."""
    told = []
    for number in range(2):
        home.variables.update(PMI_RANK=str(number), PMI_SIZE="2", MPI_LOCALRANKID=str(number))
        ended = home.run("run", "demo", "x", "--local-devices", "4")
        assert ended.code == 2
        told.append(ended.err)
    assert "leave it out" in told[0] and len(told[0].splitlines()) == 1
    assert told[1] == ""


def test_a_missing_mpi4py_is_one_line(home: Home, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "mpi4py.py").write_text("raise ImportError('there is none')\n")
    path = f"{tmp_path / 'without'}{os.pathsep}{home.variables['PYTHONPATH']}"
    home.variables.update(PMI_RANK="0", PMI_SIZE="2", PYTHONPATH=path)
    ended = home.run("run", "demo", "x")
    assert ended.code == 2 and len(ended.err.splitlines()) == 1
    assert "pip install 'tpi-llm[mpi]'" in ended.err
