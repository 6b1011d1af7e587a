"""Signals become exceptions or cancellations, so that every end passes through the context managers. Main thread."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

from tpi.errors import TpiError

T = TypeVar("T")

_GRACE_S = 1.0
"""A pass that ends in less need not be stopped."""
_LOOK_S = 0.2


class Terminated(BaseException):
    """SIGTERM or SIGHUP came; no error, and not to be caught on the way."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise :class:`Terminated` in the main thread, unless they were ignored from outside."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [signal.Signals[name] for name in names]
    previous = {number: signal.getsignal(number) for number in numbers}
    changed = [number for number in numbers if previous[number] is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        changed = []
    for number in changed:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, previous[number])


@contextlib.contextmanager
def cancelled_by_interrupt(cancel: threading.Event, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The first Ctrl-C sets ``cancel``, and if that has ended nothing after a moment, ``stop`` is called, from another
    thread; the next one raises KeyboardInterrupt as usual."""
    timer = threading.Timer(_GRACE_S, stop)
    timer.daemon = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()
        timer.start()

    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, previous)


def ended_by_check(wait: Callable[[], T], check: Callable[[], None]) -> T:
    """What ``wait`` gives, which blocks in a system call; as soon as ``check`` raises a ``TpiError``, that ends it.

    ``check`` is called by a thread of its own, some times a second. A signal may come just before the system call that
    it is to end, so it is sent until it has had its effect. In other threads than the main one, and where systems have
    no such signals, nothing is checked.
    """
    number = getattr(signal, "SIGURG", None)  # which does nothing where nobody handles it
    if number is None or threading.current_thread() is not threading.main_thread():
        return wait()
    main, is_over = threading.get_ident(), threading.Event()
    failure: TpiError | None = None
    is_waiting = False

    def watch() -> None:
        nonlocal failure
        while not is_over.wait(_LOOK_S):
            try:
                check()
            except TpiError as error:
                failure = error
                signal.pthread_kill(main, number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_waiting
        if is_waiting and failure is not None:
            is_waiting = False  # once: what follows is not to be interrupted
            raise failure

    previous = signal.signal(number, interrupt)
    watcher = threading.Thread(target=watch, name="tpi-typing", daemon=True)
    watcher.start()
    try:
        try:
            is_waiting = True
            return wait()
        finally:
            is_waiting = False
    finally:
        is_over.set()
        watcher.join()
        signal.signal(number, previous)
