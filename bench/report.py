"""What a measurement says: named values, as one JSON line and as a row of a Markdown table. Names carry units."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

Value = str | int | float | bool | None | list["Value"]


class Report:
    """The values of one measurement, in the order in which they were added."""

    def __init__(self, name: str) -> None:
        self._values: dict[str, Value] = {"bench": name}

    def add(self, **values: Value) -> Self:
        """Adds or replaces values; floats are rounded to six digits."""
        for name, value in values.items():
            self._values[name] = _rounded(value)
        return self

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Adds the seconds that the ``with`` took."""
        started = time.perf_counter()
        yield
        self.add(**{name: time.perf_counter() - started})

    def json(self) -> str:
        """One line."""
        return json.dumps(self._values)

    def cells(self) -> dict[str, str]:
        """The values as people read them, by name."""
        return {name: _cell(value) for name, value in self._values.items() if name != "bench"}


def markdown(reports: Sequence[Report]) -> str:
    """A table with a row per report; a value that a report has not is a dash."""
    rows = [report.cells() for report in reports]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = [names, ["---"] * len(names), *([row.get(name, "-") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def _rounded(value: Value) -> Value:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value


def _cell(value: Value) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")
