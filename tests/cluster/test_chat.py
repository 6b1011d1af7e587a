"""A chat on a real terminal: several turns, an answer ended by Ctrl-C, the end by Ctrl-D; a device that is lost."""

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from typing import Self

import pytest

from tests.cluster.commands import TPI, Home

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Terminal:
    """A command on a pseudo-terminal of its own, whose foreground process group it is."""

    def __init__(self, home: Home, *arguments: str) -> None:
        self._own, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", 'exec "$@"', "sh", *TPI, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            env={**home.variables, "TERM": "xterm"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(its)
        self._text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._own)

    @property
    def echoes(self) -> bool:
        """Characters are shown by the system: nobody edits a line."""
        return bool(termios.tcgetattr(self._own)[3] & termios.ECHO)

    def type(self, keys: str) -> None:
        os.write(self._own, keys.encode())

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> str:
        """What was shown up to and with ``pattern``; the next call looks behind it."""
        deadline_s = time.monotonic() + timeout_s
        while (found := re.search(pattern, _CONTROL.sub("", self._text))) is None:
            assert time.monotonic() < deadline_s, f"no {pattern!r} in {self._text[-2000:]!r}"
            if select.select([self._own], [], [], 0.1)[0]:
                try:
                    self._text += os.read(self._own, 65536).decode("utf-8", "replace")
                except OSError:  # how a terminal says that its other end is closed
                    raise AssertionError(f"ended without {pattern!r}: {self._text[-2000:]!r}") from None
        plain = _CONTROL.sub("", self._text)
        self._text = plain[found.end() :]
        return plain[: found.end()]


def test_a_chat(home: Home) -> None:
    with Terminal(home, "run", "demo", "--local-devices", "2", "--seed", "3", "--max-tokens", "150") as terminal:
        terminal.wait_for(r"/exit.*\n> ")
        terminal.type("Tell me a story about a bear and a kite.\n")
        first = terminal.wait_for(r"\[\d+ tokens, .*seed 3\]\n> ")
        assert "bear" in first and len(first.split()) > 40 and "per token: disk" in first
        terminal.type("Tell me a story about a fox and a lantern.\n")
        terminal.wait_for(r"lantern\.\n\w+\W+\w+\W")
        terminal.type("\x03")
        stopped = terminal.wait_for(r"\[(\d+) tokens, .*\]\n> ")
        assert int(re.findall(r"\[(\d+) tokens", stopped)[0]) < 150
        terminal.type("/new\n")
        terminal.wait_for(r"a new chat\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    assert home.left_behind() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "demo", "--local-devices", "2"),
        ("serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--no-api"),
        ("serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--api-port", "0"),
    ],
    ids=["run", "serve", "serve with an API"],
)
def test_a_device_that_is_lost_while_a_line_is_typed(home: Home, away: Home, arguments: tuple[str, ...]) -> None:
    with contextlib.ExitStack() as stack:
        terminal = stack.enter_context(Terminal(home, *arguments))
        if arguments[0] == "serve":
            key = re.findall(r"tpi join (\S+)", terminal.wait_for(r"tpi join \S+\s"))[0]
            stack.enter_context(away.start("join", key))
        terminal.wait_for(r"/exit.*\n> ")
        terminal.type("Tell me a st")
        terminal.wait_for("a st")
        assert not terminal.echoes
        victim = next(pid for pid in (*home.pids(), *away.pids()) if pid != terminal.process.pid)
        os.kill(victim, signal.SIGKILL)
        said = terminal.wait_for(r"tpi: .*\n")
        assert re.fullmatch(r"\s*\ntpi: .*(local-1 ended: killed by signal 9|rank 1\) is gone).*\n", said), said
        assert terminal.process.wait(20) == 1
        assert terminal.echoes
    assert home.left_behind() == []
