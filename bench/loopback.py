"""Devices that share this machine's loopback: for where nothing can be emulated. No limits, no latency, no counting."""

import subprocess
from collections.abc import Sequence
from typing import Any, Self

from bench.testbed.testbed import SwitchStatistics

_GRACE_S = 5.0


class Loopback:
    """Satisfies ``bench.served.Bed``. A context manager; its processes end with it."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def address(self, rank: int) -> str:
        """The same for all."""
        return "127.0.0.1"

    def popen(
        self, rank: int, argv: Sequence[str], *, is_limited: bool = True, **options: Any
    ) -> subprocess.Popen[Any]:
        """See ``Testbed.popen``."""
        process = subprocess.Popen(argv, **options)
        self._processes.append(process)
        return process

    def statistics(self) -> SwitchStatistics:
        """Nothing is counted."""
        return SwitchStatistics(0.0, 0.0, 0.0, ())

    def reset_statistics(self) -> None:
        """Does nothing."""
