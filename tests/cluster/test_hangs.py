"""Devices that hang: a disk that never answers, a processor that is far too slow. The master says who is late, and
Ctrl-C ends it within seconds, whatever the others do."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.commands import Home, Running, find_key
from tests.models import write_random_model

ENDED_S = 5.0
"""A second until a pass is stopped, two for figures of a device that does not answer, one to say goodbye."""
MAIN = "; import sys, tpi.cli.main; sys.exit(tpi.cli.main.main())"
HANGS_IN_PREPARE = (
    "import threading, tpi.cluster.epoch.preparing as p; p.check_kernels = lambda *_: threading.Event().wait()" + MAIN
)
SLOW_READS = """
import os, sys, time
import tpi.weights.streaming.disk as disk
read = disk.read_some

def read_if_it_may(*arguments):
    while os.path.exists(os.environ["TPI_HOME"] + "/stuck"):
        time.sleep(0.02)
    return read(*arguments)

disk.read_some = read_if_it_may
import tpi.cli.main
sys.exit(tpi.cli.main.main())
"""
HANGS_IN_A_PASS = """
import os, time
from tpi.cluster.epoch.host import RankHost
run = RankHost.run

def run_if_it_may(host, work):
    while os.path.exists(os.environ["TPI_HOME"] + "/stuck"):
        time.sleep(0.02)
    return run(host, work)

RankHost.run = run_if_it_may
import sys, tpi.cli.main
sys.exit(tpi.cli.main.main())
"""
SERVE = ("--bind", "127.0.0.1", "--port", "0", "--threads", "1")


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that talks for seconds."""
    path = tmp_path_factory.mktemp("talkative") / "talkative.gguf"
    return write_random_model(
        path, n_layers=16, n_embd=512, n_heads=8, n_ff=1536, types="Q4_0", context=4096, ends=False
    )


def ends_within(running: Running, seconds: float) -> int:
    started = time.monotonic()
    code = running.process.wait(30)
    took_s = time.monotonic() - started
    print(f"ended with {code} after {took_s:.2f} s: {running.err().splitlines()[-1]}")
    assert took_s < seconds, running.err()
    assert "Traceback" not in running.err()
    return code


def test_ctrl_c_while_a_worker_hangs_in_its_preparation(home: Home, away: Home) -> None:
    with (
        home.start("serve", "demo", *SERVE) as serve,
        away.start("join", find_key(serve), "--name", "stuck", program=HANGS_IN_PREPARE) as join,
    ):
        serve.wait_for("1 of 1 devices")
        time.sleep(0.5)
        serve.process.send_signal(signal.SIGINT)
        assert ends_within(serve, 3) == 128 + signal.SIGINT
        assert join.process.poll() is None, "it hung all the time"


def test_a_worker_that_stands_still_while_it_prepares_is_given_up(home: Home, away: Home) -> None:
    with (
        home.start("serve", "demo", *SERVE) as serve,
        away.start("join", find_key(serve), "--name", "stuck", program=HANGS_IN_PREPARE) as join,
    ):
        serve.wait_for("1 of 1 devices")
        time.sleep(0.5)
        join.stop()
        assert ends_within(serve, 4) == 1
        assert "stuck (rank 1) is gone: " in serve.err() and "gave no sign of life for 1.9 s" in serve.err()


def test_a_disk_that_never_answers_is_named_and_ctrl_c_ends_the_answer(home: Home, away: Home, talkative: Path) -> None:
    """Its control link lives: it is reported, not cut."""
    stuck = away.folder / "stuck"
    with home.start("serve", str(talkative), *SERVE, "--raw", "--max-tokens", "4000") as serve:
        options = ["--name", "attic", "--threads", "1", "--window", "4MB"]
        with away.start("join", find_key(serve), *options, program=SLOW_READS) as join:
            serve.wait_for("ready: 2 devices work")
            serve.say("w1 w2 w3")
            assert serve.process.stdout is not None and os.read(serve.process.stdout.fileno(), 1)
            time.sleep(0.5)
            stuck.touch()
            deadline_s = time.monotonic() + 15
            while not (notes := json.loads(home.run("status", "--json").out)["notes"]):
                assert time.monotonic() < deadline_s
            assert "attic (rank 1) has been at its disk" in notes[-1], notes
            assert serve.process.poll() is None and join.process.poll() is None
            serve.process.send_signal(signal.SIGINT)
            assert ends_within(serve, ENDED_S) == 128 + signal.SIGINT
            stuck.unlink()
            join.process.wait(10)


def test_ctrl_c_while_a_worker_hangs_where_nothing_can_stop_it(home: Home, away: Home, talkative: Path) -> None:
    """The master does not wait until it has ended the epoch."""
    stuck = away.folder / "stuck"
    with home.start("serve", str(talkative), *SERVE, "--raw", "--max-tokens", "4000") as serve:
        options = ["--name", "attic", "--threads", "1"]
        with away.start("join", find_key(serve), *options, program=HANGS_IN_A_PASS):
            serve.wait_for("ready: 2 devices work")
            serve.say("w1 w2 w3")
            assert serve.process.stdout is not None and os.read(serve.process.stdout.fileno(), 1)
            stuck.touch()
            time.sleep(1)
            serve.process.send_signal(signal.SIGINT)
            assert ends_within(serve, ENDED_S) == 128 + signal.SIGINT


@contextmanager
def slowed(running: Running) -> Iterator[None]:
    """The process stands still most of the time; less than what counts as silence."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            running.process.send_signal(signal.SIGSTOP)
            is_over.wait(0.3)
            running.process.send_signal(signal.SIGCONT)
            is_over.wait(0.03)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_ctrl_c_in_the_middle_of_a_pass_on_a_slow_device(home: Home, away: Home, talkative: Path) -> None:
    """The worker ends as soon as it gets to run."""
    with (
        home.start("serve", str(talkative), *SERVE, "--raw", "--shares", "1,9", "--no-stats") as serve,
        away.start("join", find_key(serve), "--name", "attic", "--threads", "1") as join,
    ):
        serve.wait_for("ready: 2 devices work")
        with slowed(join):
            serve.say(" ".join(f"w{number % 50}" for number in range(500)))
            time.sleep(2)
            serve.process.send_signal(signal.SIGINT)
            assert ends_within(serve, ENDED_S) == 128 + signal.SIGINT
        assert ends_within(join, ENDED_S) == 1
