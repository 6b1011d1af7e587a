"""Progress and tables, as lines and on a terminal."""

import io
import re

from rich.console import Console

from tpi.cli.display import Display, PlainDisplay
from tpi.cli.display_rich import RichDisplay
from tpi.cluster.reports import Event, Loading, Ready, Transfer, Waiting

START: list[Event] = [
    Waiting(0, 2, None),
    Waiting(1, 2, "attic[red]"),
    Transfer(0, "here", 0, 4000, "cut"),
    Transfer(0, "here", 4000, 4000, "cut"),
    Transfer(1, "attic[red]", 500, 4000, "received"),
    Transfer(1, "attic[red]", 4000, 4000, "received"),
    Transfer(2, "cellar", 9000, 9000, "reused"),
    Loading(1, "attic[red]"),
    Loading(1, "attic[red]"),
    Ready(3),
]


def test_plain_lines_say_what_happened_once() -> None:
    stream = io.StringIO()
    display: Display = PlainDisplay(stream, lambda: 0.0)
    for event in START:
        display.report(event)
    display.settle()
    assert stream.getvalue().splitlines() == [
        "0 of 2 devices are here",
        "attic[red] has joined; 1 of 2 devices are here",
        "rank 0 (here) cuts its slices: 4.0 kB, done",
        "rank 1 (attic[red]) receives its slices: 4.0 kB, done",
        "rank 2 (cellar) has its slices from before: 9.0 kB",
        "rank 1 (attic[red]) fills its window",
        "ready: 3 devices work",
    ]


def test_plain_lines_tell_of_long_transfers_now_and_then() -> None:
    stream, times = io.StringIO(), iter(range(100))
    display = PlainDisplay(stream, lambda: float(next(times)))
    for percent in range(0, 100, 10):
        display.progress("cutting", percent * 1000, 100_000)
    assert stream.getvalue().splitlines() == ["cutting: 50 kB of 100 kB, 50 %"]


def test_a_terminal_gets_bars_that_vanish_and_words_as_they_are() -> None:
    stream = io.StringIO()
    display: Display = RichDisplay(Console(file=stream, force_terminal=True, width=100))
    for event in START[:-1]:
        display.report(event)
    display.progress("checking", 10, 20)
    assert "attic[red]" in _plain(stream)
    assert "received" not in _plain(stream) and "filling its window" in _plain(stream)
    display.report(START[-1])
    display.note("a [bold]note[/bold]")
    display.table("title", ("rank", "name", "size"), [("0", "[x]", "3 MB")])
    display.settle()
    assert "a [bold]note[/bold]" in _plain(stream)
    assert "[x]" in _plain(stream)


def test_a_join_key_stays_one_line_on_a_narrow_terminal() -> None:
    stream = io.StringIO()
    RichDisplay(Console(file=stream, force_terminal=True, width=40)).note("    tpi join " + "k" * 180)
    assert stream.getvalue() == "    tpi join " + "k" * 180 + "\n"


def _plain(stream: io.StringIO) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
