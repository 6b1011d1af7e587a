"""From the memory of every rank to the weights of the partition. Pure arithmetic."""

from collections.abc import Sequence

from tpi.errors import UsageError

_STEPS_PER_DOUBLING = 4


def shares_by_memory(memory_bytes: Sequence[int]) -> tuple[float, ...]:
    """Weights in proportion to each rank's memory, rounded down to a quarter of a power of two.

    The rounding keeps the partition, and with it the shards on disk, the same when the memory that is free differs a
    little from start to start.
    """
    return tuple(float(_round_down(value)) for value in memory_bytes)


def _round_down(value: int) -> int:
    step = max(1, (1 << value.bit_length() - 1) // _STEPS_PER_DOUBLING) if value > 0 else 1
    return value // step * step


def check_shares(shares: Sequence[float], n_ranks: int) -> None:
    """Raises:
    UsageError: the shares are not one per rank.
    """
    if len(shares) != n_ranks:
        raise UsageError(f"there are {len(shares)} shares for {n_ranks} devices: give one to each, the master's first")
