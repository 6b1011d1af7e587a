"""What the thread that runs passes spends its time with: sums of seconds, what it does now, and a trace if wanted."""

from time import perf_counter

from tpi.trace import Kind, Trace


class RankTimes:
    """Counts from its start on. The thread of passes adds; any thread reads."""

    def __init__(self) -> None:
        self.compute_s = self.hold_s = self.allreduce_s = 0.0
        self.n_passes = self.n_sums = 0
        self.n_rechosen = 0
        """Sums that were made anew because ranks had chosen different experts."""
        self.doing = "idle"
        """``idle``, ``disk``, ``compute`` or ``sum``: now."""
        self.trace: Trace | None = None
        self._pass_id = 0

    def begin(self, pass_id: int) -> float:
        """A pass begins; now."""
        self._pass_id = pass_id
        return perf_counter()

    def end(self, started: float) -> None:
        """The pass that began at ``started`` is through."""
        self.n_passes += 1
        self.doing = "idle"
        if self.trace is not None:
            self.trace.add(Kind.PASS, started, perf_counter(), self._pass_id)

    def now(self, doing: str) -> float:
        """Something else begins; now."""
        self.doing = doing
        return perf_counter()

    def computed(self, started: float, block: int, part: int = 0) -> None:
        """A block's part was computed since ``started``."""
        ended = perf_counter()
        self.compute_s += ended - started
        if self.trace is not None:
            self.trace.add(Kind.COMPUTE, started, ended, self._pass_id, block, part)

    def held(self, started: float, block: int) -> None:
        """A piece of the block's weights was waited for since ``started``."""
        ended = perf_counter()
        self.hold_s += ended - started
        if self.trace is not None:
            self.trace.add(Kind.DISK, started, ended, self._pass_id, block)

    def waited(self, started: float, block: int, part: int) -> None:
        """A sum was begun, or waited for, since ``started``."""
        ended = perf_counter()
        self.allreduce_s += ended - started
        if self.trace is not None:
            self.trace.add(Kind.WAIT, started, ended, self._pass_id, block, part)

    def summed(self, started: float, block: int, part: int) -> None:
        """A sum that began at ``started`` is there."""
        self.n_sums += 1
        if self.trace is not None:
            self.trace.add(Kind.SUM, started, perf_counter(), self._pass_id, block, part)
