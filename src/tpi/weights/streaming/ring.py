"""Places for pieces of any size in a ring of memory, taken and given back in the same order. Arithmetic only."""

from collections import deque


class Ring:
    """Hands out runs of ``n_bytes`` of memory that never wrap around the end. Not for several threads at once."""

    def __init__(self, n_bytes: int) -> None:
        self._n_bytes = n_bytes
        self._taken: deque[tuple[int, int]] = deque()

    def try_take(self, n_bytes: int) -> int | None:
        """The offset of a free run, or None as long as there is none. An empty ring has room for all its bytes."""
        offset = self._find(n_bytes)
        if offset is not None:
            self._taken.append((offset, offset + n_bytes))
        return offset

    def give_back(self) -> None:
        """Frees the run that was taken first."""
        self._taken.popleft()

    def _find(self, n_bytes: int) -> int | None:
        if not self._taken:
            return 0 if n_bytes <= self._n_bytes else None
        start, end = self._taken[0][0], self._taken[-1][1]
        if self._taken[-1][0] < start:  # has gone around: free is what lies between
            return end if end + n_bytes <= start else None
        if end + n_bytes <= self._n_bytes:
            return end
        return 0 if n_bytes <= start else None
