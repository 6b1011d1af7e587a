"""How long a real rank computes each kind of block: recorded by ``streaming``, waited by ``standins``. Data only."""

from pathlib import Path

import msgspec
import numpy as np


class Computed(msgspec.Struct, frozen=True):
    """What the computing of one block took for so many rows; seconds, a median."""

    block: str
    n_rows: int
    seconds: float


class Recording(msgspec.Struct, frozen=True):
    """Of all kinds of blocks and all numbers of rows that were seen."""

    entries: tuple[Computed, ...] = ()

    def seconds(self, block: str, n_rows: int) -> float:
        """For a block: as recorded, or between the two numbers of rows next to it, or beyond all of them in proportion
        to the last; 0 if its name is unknown."""
        known = sorted((entry.n_rows, entry.seconds) for entry in self.entries if entry.block == block)
        if not known:
            return 0.0
        most, most_s = known[-1]
        if n_rows > most:
            return most_s * n_rows / most
        return float(np.interp(n_rows, [n for n, _ in known], [seconds for _, seconds in known]))


def read_recording(path: Path) -> Recording:
    """What ``write_recording`` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Recording)


def write_recording(recording: Recording, path: Path) -> Path:
    """Returns ``path``."""
    path.write_bytes(msgspec.json.encode(recording))
    return path
