"""What blocks in a system call, and ends with an error that another thread finds."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from tpi.cli import signals
from tpi.cli.signals import ended_by_check
from tpi.errors import LinkError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signals, "_LOOK_S", 0.01)
    yield
    assert signal.getsignal(signal.SIGURG) is signal.SIG_DFL
    assert all(thread.name != "tpi-typing" for thread in threading.enumerate())


class Pipe:
    """Never readable but for what is written to it."""

    def __enter__(self) -> "Pipe":
        self.reader, self.writer = os.pipe()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.reader)
        os.close(self.writer)

    def read(self) -> bytes:
        return os.read(self.reader, 100)


def gone() -> None:
    raise LinkError("attic (rank 1) is gone")


def test_what_blocks_ends_with_the_error() -> None:
    with Pipe() as pipe, pytest.raises(LinkError, match="attic"):
        ended_by_check(pipe.read, gone)


def test_a_signal_that_comes_too_early_comes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kill, n_lost = signal.pthread_kill, 0

    def lose_some(thread: int, number: int) -> None:
        nonlocal n_lost
        n_lost += 1
        if n_lost > 3:
            kill(thread, number)

    monkeypatch.setattr(signal, "pthread_kill", lose_some)
    with Pipe() as pipe, pytest.raises(LinkError, match="attic"):
        ended_by_check(pipe.read, gone)


def test_what_ends_by_itself() -> None:
    looked = threading.Event()
    with Pipe() as pipe:

        def read() -> bytes:
            assert looked.wait(10)
            os.write(pipe.writer, b"line")
            return pipe.read()

        assert ended_by_check(read, looked.set) == b"line"


def test_an_error_of_its_own() -> None:
    def fail() -> None:
        raise EOFError

    with pytest.raises(EOFError):
        ended_by_check(fail, lambda: None)
