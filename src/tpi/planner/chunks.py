"""How many tokens a pass of a prefill should have, so that computing covers reading. Pure arithmetic.

In a pass every rank computes for all tokens of it and reads, once, all weights that do not stay in memory; disks go on
while ranks wait for each other's sums. So a pass lasts as long as the slowest of all disks needs, or as the slowest
rank computes: where the disk is slower, a pass of twice as many tokens takes no longer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_LONGER = (256, 512)

ASSUMED_DISK_BYTES_PER_S = 500e6
"""Of a disk that was never tried: a SATA SSD's rate."""


@dataclass(frozen=True)
class Speeds:
    """What a device was measured to do; 0: not known."""

    flop_per_s: float = 0.0
    disk_bytes_per_s: float = 0.0


@dataclass(frozen=True)
class PassLoad:
    """What a rank reads for a pass without sampled rows, and what it computes for each of its tokens."""

    streamed_bytes: int
    flop_per_token: int


def possible_tokens(usual: int, n_cells: int) -> list[int]:
    """What passes may have, ascending: as many as usual, or more, but not more than there are cells."""
    return sorted({usual, *(min(length, n_cells) for length in _LONGER if length > usual)})


def covering_tokens(loads: Sequence[PassLoad], speeds: Sequence[Speeds], lengths: Sequence[int]) -> int:
    """The first of ``lengths``, ascending, with which computing lasts as long as reading, or else the last; the first
    if no rank's rate of computing is known. Loads and speeds are those of the same ranks."""
    pairs = list(zip(loads, speeds, strict=True))
    reading_s = max(
        (load.streamed_bytes / (speed.disk_bytes_per_s or ASSUMED_DISK_BYTES_PER_S) for load, speed in pairs),
        default=0.0,
    )
    token_s = max((load.flop_per_token / speed.flop_per_s for load, speed in pairs if speed.flop_per_s), default=0.0)
    if not token_s:
        return lengths[0]
    return next((length for length in lengths if length * token_s >= reading_s), lengths[-1])
