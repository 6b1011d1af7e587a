"""Progress bars and tables on a terminal, by ``rich``. Masters only. Called from the main thread."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from tpi.cli.figures import duration, size
from tpi.cli.sums import ready_text
from tpi.cluster.reports import Event, Loading, Ready, Remark, Transfer, Waiting

_TRANSFERS = {"cut": "cutting", "received": "receiving", "reused": "reusing"}


class _Amount(ProgressColumn):
    """How many bytes of how many, how fast, how long still."""

    def render(self, task: Task) -> Text:
        if task.total is None or not task.fields["sized"]:
            return Text("")
        text = f"{size(task.completed)} of {size(task.total)}"
        if task.speed and not task.finished:
            text += f", {size(task.speed)}/s, {duration(task.time_remaining or 0)} left"
        return Text(text, style="dim")


class RichDisplay:
    """Bars that vanish when everything is ready; tables that stay."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bars: Progress | None = None
        self._tasks: dict[object, TaskID] = {}

    def report(self, event: Event) -> None:
        match event:
            case Waiting(n_joined, n_workers, name):
                if n_workers:
                    who = f" ({name} has joined)" if name else ""
                    self._set("waiting", f"devices{who}: {n_joined} of {n_workers}", n_joined, n_workers, sized=False)
            case Transfer(rank, name, n_done, n_bytes, how):
                self._set(rank, f"rank {rank} {name}: {_TRANSFERS.get(how, how)}", n_done, n_bytes)
            case Loading(rank, name):
                self._set(rank, f"rank {rank} {name}: filling its window", None, None)
            case Remark(text):
                self.note(text)
            case Ready():
                self.settle()
                self.note(ready_text(event))

    def note(self, text: str) -> None:
        # soft_wrap: a join key must stay one line for copying.
        self._console.print(escape(text), soft_wrap=True)

    def progress(self, what: str, n_done: int, n_total: int) -> None:
        self._set(what, what, n_done, n_total)
        if n_done >= n_total:
            self.settle()

    def table(self, title: str, columns: Sequence[str], table: Sequence[Sequence[str]]) -> None:
        shown = Table(box=None, pad_edge=False, header_style="dim")
        for index, column in enumerate(columns):
            shown.add_column(column, justify="left" if index < 2 else "right")
        for row in table:
            shown.add_row(*map(escape, row))
        self._console.print(escape(title), style="dim", soft_wrap=True)
        self._console.print(shown)

    def settle(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        self._bars, self._tasks = None, {}

    def _set(self, key: object, text: str, n_done: int | None, n_total: int | None, sized: bool = True) -> None:
        bars = self._open_bars()
        if key not in self._tasks:
            self._tasks[key] = bars.add_task("", total=n_total, sized=sized)
        bars.update(self._tasks[key], description=escape(text))
        if n_total is not None:
            bars.update(self._tasks[key], total=n_total, completed=n_done)

    def _open_bars(self) -> Progress:
        if self._bars is None:
            self._bars = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                _Amount(),
                console=self._console,
                transient=True,
                refresh_per_second=8,
            )
            self._bars.start()
        return self._bars
