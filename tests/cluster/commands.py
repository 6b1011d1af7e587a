"""Runs the command line in processes of its own, with folders of its own, and looks for what it leaves behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import pytest

TIMEOUT_S = 60.0
LONG_FORM = pytest.mark.skipif("TPI_LONG_TESTS" not in os.environ, reason="the long form: set TPI_LONG_TESTS")
TPI = (sys.executable, "-P", "-m", "tpi")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line of standard error."""
        return (self.err.splitlines() or [""])[-1]


class Home:
    """One device: its folders, and the commands that run on it. ``cache`` may be that of others: kernels are tried
    once."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("TPI_", "XDG_"))},
            "TPI_HOME": str(folder),
            "TMPDIR": str(folder / "tmp"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        (folder / "tmp").mkdir(parents=True)
        (folder / "cache").symlink_to(cache)

    @classmethod
    @contextlib.contextmanager
    def several(cls, n: int, parent: Path, cache: Path) -> Iterator[list["Home"]]:
        """So many devices, which must be quiet in the end, and leave nothing behind."""
        homes = [cls(parent / f"other-{number}", cache) for number in range(n)]
        yield homes
        for home in homes:
            home.wait_until_quiet()
            assert home.left_behind() == []

    def run(self, *arguments: str, stdin: str = "", prefix: Sequence[str] = ()) -> Ended:
        """Runs a command to its end; ``prefix`` are words of a shell before it."""
        with self.start(*arguments, prefix=prefix) as running:
            return running.wait(stdin)

    def start(
        self, *arguments: str, prefix: Sequence[str] = (), program: str | None = None, through: Sequence[str] = ()
    ) -> "Running":
        """Starts a command; ``program`` is Python code to run in place of ``tpi``, ``through`` another command with
        its options that starts it. ``serve`` speaks no API, unless an option says where."""
        if arguments[:1] == ("serve",) and "--api-port" not in arguments:
            arguments = (*arguments, "--no-api")
        command = [*TPI, *arguments] if program is None else [sys.executable, "-P", "-c", program, *arguments]
        if prefix:
            command = ["/bin/sh", "-c", " ".join(prefix) + '; exec "$@"', "sh", *command]
        return Running([*through, *command], self)

    def left_behind(self, may_resume: bool = False) -> list[str]:
        """Files that should not be there when nothing runs: temporary ones, sockets, and, unless the next start
        ``may_resume``, unfinished shards."""
        found = [path for path in (self.folder / "tmp").rglob("*") if path.is_file()]
        found += self.folder.glob("state/run/*")
        if not may_resume:
            found += [path for path in self.folder.glob("shards/**/*") if path.suffix in (".part", ".journal")]
        return [str(path.relative_to(self.folder)) for path in found]

    def pids(self) -> list[int]:
        """Processes that were started with this home's folders and still run."""
        mark = f"TPI_HOME={self.folder}".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def wait_until_quiet(self, timeout_s: float = 15.0) -> None:
        """Until none of its processes runs any more."""
        deadline_s = time.monotonic() + timeout_s
        while pids := self.pids():
            assert time.monotonic() < deadline_s, f"processes {pids} still run"
            time.sleep(0.05)


class Running:
    """A command that runs. A context manager, which kills it if need be."""

    def __init__(self, command: Sequence[str], home: Home) -> None:
        home.folder.mkdir(exist_ok=True)
        self._number = len(list(home.folder.glob("*.err")))
        self._err_path = home.folder / f"{self._number}.err"
        with self._err_path.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=err, env=home.variables
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def say(self, text: str) -> None:
        """Sends a line to its standard input."""
        self.stdin.write(text.encode() + b"\n")
        self.stdin.flush()

    def err(self) -> str:
        """Its standard error so far."""
        return self._err_path.read_text()

    def wait_for(self, text: str, timeout_s: float = TIMEOUT_S) -> str:
        """Standard error, once ``text`` is in it."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.err():
            assert self.process.poll() is None, f"ended without {text!r}: {self.err()}"
            assert time.monotonic() < deadline_s, f"no {text!r} in: {self.err()}"
            time.sleep(0.05)
        return self.err()

    def stop(self) -> None:
        """Sends SIGSTOP and waits until none of its threads runs: the signal alone takes effect some time later."""
        self.process.send_signal(signal.SIGSTOP)
        deadline_s = time.monotonic() + TIMEOUT_S
        threads = list(Path(f"/proc/{self.process.pid}/task").glob("*/stat"))
        while not all(path.read_text().rpartition(")")[2].split()[0] == "T" for path in threads):
            assert time.monotonic() < deadline_s, f"process {self.process.pid} does not stop"
            time.sleep(0.01)

    def wait(self, stdin: str = "") -> Ended:
        """Sends ``stdin`` and its end, waits for the command's end."""
        out, _ = self.process.communicate(stdin.encode(), timeout=TIMEOUT_S)
        return Ended(self.process.returncode, out.decode(), self.err())


def find_key(serve: Running) -> str:
    """The join key of ``tpi serve``, from the file that its log names."""
    said = serve.wait_for("tpi join --key-file")
    return Path(said.split("the join key is in ")[1].split(" (")[0]).read_text().strip()
