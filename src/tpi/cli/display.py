"""What people see besides answers, on standard error: progress of a start, notes, tables. Plain lines.

On a terminal, masters use ``display_rich`` instead, which workers never load. Called from the main thread.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

from tpi.cli.figures import part, size
from tpi.cli.statistics import as_text
from tpi.cli.sums import ready_text
from tpi.cluster.reports import Event, Loading, Ready, Remark, Transfer, Waiting

_PROGRESS_INTERVAL_S = 5.0
_TRANSFERS = {"cut": "cuts its slices", "received": "receives its slices", "reused": "has its slices from before"}


class Display(Protocol):
    """Where notes, progress and tables go."""

    def report(self, event: Event) -> None:
        """Shows an event of a start; does not block."""

    def note(self, text: str) -> None:
        """One line or more for the user."""

    def progress(self, what: str, n_done: int, n_total: int) -> None:
        """Shows how far one thing is, in bytes; ``n_done == n_total`` ends it."""

    def table(self, title: str, columns: Sequence[str], table: Sequence[Sequence[str]]) -> None:
        """Shows a table."""

    def settle(self) -> None:
        """Ends what moves, so that answers can be written."""


class PlainDisplay:
    """Lines for logs and pipes: what begins and what ends, and every few seconds what is between."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._begun: dict[object, float] = {}
        self._ended: set[object] = set()

    def report(self, event: Event) -> None:
        match event:
            case Waiting(n_joined, n_workers, name):
                who = f"{name} has joined; " if name else ""
                if n_workers:
                    self.note(f"{who}{n_joined} of {n_workers} devices are here")
            case Transfer(rank, name, n_done, n_bytes, how):
                what = f"rank {rank} ({name}) {_TRANSFERS.get(how, how)}"
                if how == "reused":
                    self._once((rank, how), f"{what}: {size(n_bytes)}")
                else:
                    self._step((rank, how), what, n_done, n_bytes)
            case Loading(rank, name):
                self._once((rank, "loading"), f"rank {rank} ({name}) fills its window")
            case Remark(text):
                self.note(text)
            case Ready():
                self.note(ready_text(event))

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def progress(self, what: str, n_done: int, n_total: int) -> None:
        self._step(what, what, n_done, n_total)

    def table(self, title: str, columns: Sequence[str], table: Sequence[Sequence[str]]) -> None:
        self.note("\n".join((title, *as_text(columns, table))))

    def settle(self) -> None:
        """Nothing moves here."""

    def _once(self, key: object, text: str) -> None:
        if key not in self._ended:
            self._ended.add(key)
            self.note(text)

    def _step(self, key: object, what: str, n_done: int, n_total: int) -> None:
        now_s = self._clock()
        if n_done >= n_total:
            self._once(key, f"{what}: {size(n_total)}, done")
        elif key not in self._begun:
            self._begun[key] = now_s
        elif now_s - self._begun[key] >= _PROGRESS_INTERVAL_S:
            self._begun[key] = now_s
            self.note(f"{what}: {size(n_done)} of {size(n_total)}, {part(n_done / n_total)}")


def open_display() -> Display:
    """The display that standard error deserves. Masters only: on a terminal it loads ``rich``."""
    if not sys.stderr.isatty():
        return PlainDisplay()
    # Some 15 MB and a tenth of a second that only terminals need.
    from tpi.cli.display_rich import RichDisplay  # noqa: PLC0415

    return RichDisplay()
