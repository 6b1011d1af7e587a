"""Real devices whose processors are overloaded and which stand still now and then: nobody may be dropped.

``python -m tests.cluster.stalls --minutes 10``. A master and three workers, two busy loops for every core; all the time
one of the four, the master too, is stopped for 1.5 s and goes on for a moment. ``test_processes`` has a short form.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.commands import Home, Running, find_key

STALL_S = 1.5
N_WORKERS = 3
_MOST_PAUSE_S = 0.6


_ONE_LINE = ("--temperature", "0", "--max-tokens", "20")
"""An answer that ends before its first line does: whoever reads a line has read an answer."""
_MOST_SILENCE_S = 30.0


@dataclass
class Outcome:
    """How often a device stood still, how many answers came meanwhile, and what the master said last."""

    n_stalls: int
    n_answers: int
    last_words: str


@contextmanager
def busy_processors(n_loops: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_loops)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run_with_stalls(homes: Sequence[Home], seconds: float, seed: int = 1) -> Outcome:
    """Blocks for ``seconds`` and the time to start and end.

    Raises:
        AssertionError: a process has ended, or no answer has come for ``_MOST_SILENCE_S``.
    """
    chooser, n_stalls = random.Random(seed), 0
    arguments = ["serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--workers", str(N_WORKERS), "--threads", "1"]
    with ExitStack() as stack:
        master = stack.enter_context(homes[0].start(*arguments, *_ONE_LINE))
        key = find_key(master)
        running = [master]
        for number, home in enumerate(homes[1:], start=1):
            running.append(stack.enter_context(home.start("join", key, "--name", f"w{number}", "--threads", "1")))
        master.wait_for("ready: 4 devices work")
        asking = _Asking(master)
        stack.enter_context(busy_processors(2 * (os.cpu_count() or 1)))
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s:
            victim = chooser.choice(running)
            victim.stop()
            time.sleep(STALL_S)
            victim.process.send_signal(signal.SIGCONT)
            n_stalls += 1
            time.sleep(chooser.uniform(0.05, _MOST_PAUSE_S))
            for device in running:
                assert device.process.poll() is None, device.err()
            assert asking.silent_s < _MOST_SILENCE_S, master.err()
        n_answers = asking.end()
        assert master.process.wait(60) == 0, master.err()
        return Outcome(n_stalls, n_answers, master.err().splitlines()[-1])


class _Asking:
    """Asks one question after the other, and counts the answers."""

    def __init__(self, master: Running) -> None:
        self._master, self._n_answers, self._answered_s = master, 0, time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    @property
    def silent_s(self) -> float:
        """Since the last answer."""
        return time.monotonic() - self._answered_s

    def end(self) -> int:
        self._is_over.set()
        self._thread.join(60)
        self._master.stdin.close()
        return self._n_answers

    def _ask(self) -> None:
        out = self._master.process.stdout
        assert out is not None
        while not self._is_over.is_set():
            self._master.say("Tell me a story about a fox and a lantern.")
            if not out.readline():
                return
            self._n_answers, self._answered_s = self._n_answers + 1, time.monotonic()


def main() -> None:
    """Says how it went."""
    parser = argparse.ArgumentParser(prog="tests.cluster.stalls")
    parser.add_argument("--minutes", type=float, default=10.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        homes = [Home(folder / f"device-{number}", folder / "cache") for number in range(1 + N_WORKERS)]
        outcome = run_with_stalls(homes, given.minutes * 60)
    print(
        f"{outcome.n_stalls} stalls of {STALL_S} s, {outcome.n_answers} answers, nobody dropped: {outcome.last_words}"
    )


if __name__ == "__main__":
    main()
