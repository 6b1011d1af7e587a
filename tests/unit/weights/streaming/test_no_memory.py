"""Where the system gives no memory: one line that says so, and no reader is left running."""

import re
import sys
from pathlib import Path

import pytest

from tests.limits import said_by

CHILD = """
import pathlib, sys, threading
from tests.limits import give_no_more_than
from tests.unit.weights.streaming.test_window import PieceReader, Window, store
from tpi.errors import MemoryBudgetError
from tpi.weights.streaming.disk import ReadWay
from tpi.weights.streaming.readways import try_ways

stored, _ = store(pathlib.Path(sys.argv[1]), [8 << 10, 8 << 10])

def window():
    reader = PieceReader(stored)
    give_no_more_than(16 << 20)
    Window(stored, reader, stored.arena_bytes)

def lent():
    reader = PieceReader(stored)
    give_no_more_than(48 << 20)
    Window(stored, reader, stored.arena_bytes // 2, stored.arena_bytes // 2)

def trial():
    give_no_more_than(4 << 30)
    try_ways(stored, 8 << 30)

def readers():
    give_no_more_than(1 << 20)
    PieceReader(stored, ReadWay(n_readers=4))

try:
    globals()[sys.argv[2]]()
except MemoryBudgetError as error:
    print(error)
print([thread.name for thread in threading.enumerate()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("window", r"no room for 67,108,864 bytes of weights \(Cannot allocate memory\): .+"),
        ("lent", r"no room for 67,108,864 bytes of weights \(Cannot allocate memory\): .+"),
        ("trial", r"no room for 8,589,934,592 bytes to try the disk with \(Cannot allocate memory\): .+"),
        ("readers", r"no room for 4 threads that read the disk \(.+\): .+"),
    ],
)
def test_memory_that_is_refused_is_one_line(tmp_path: Path, what: str, message: str) -> None:
    said = said_by(CHILD, str(tmp_path / "w"), what)
    assert re.fullmatch(message, said[0])
    assert said[1:] == ["['MainThread']"]
