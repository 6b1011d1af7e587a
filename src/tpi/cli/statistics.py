"""What an answer took, from the cluster's state before and after it. Pure arithmetic and text; no terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tpi.cli.figures import duration, size
from tpi.cluster.reports import ClusterStatus, RankStatus


class AnswerFigures(Protocol):
    """What is read of the engine's ``Answer``."""

    @property
    def n_prompt_tokens(self) -> int: ...
    @property
    def n_cached_tokens(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
    @property
    def time_to_first_token_s(self) -> float: ...
    @property
    def decode_s(self) -> float: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True)
class RankStatistics:
    """One rank's part of an answer. Bytes and times are per token of the answer, those for the prompt included."""

    state: RankStatus
    disk_bytes: float
    network_bytes: float
    allreduce_s: float


@dataclass(frozen=True)
class AnswerStatistics:
    """One answer. ``tokens_per_s`` counts from the first token on; None for a single token."""

    n_tokens: int
    n_prompt_tokens: int
    n_cached_tokens: int
    time_to_first_token_s: float
    tokens_per_s: float | None
    seed: int
    ranks: tuple[RankStatistics, ...]

    @property
    def disk_bytes(self) -> float:
        """Read from the disks of all ranks, per token."""
        return sum(rank.disk_bytes for rank in self.ranks)

    @property
    def network_bytes(self) -> float:
        """Sent by all ranks, per token."""
        return sum(rank.network_bytes for rank in self.ranks)


def measure(before: ClusterStatus, after: ClusterStatus, answer: AnswerFigures) -> AnswerStatistics:
    """The statistics of ``answer``, which was given between the two states."""
    n_tokens = answer.n_tokens
    earlier = {rank.rank: rank for rank in before.ranks}
    return AnswerStatistics(
        n_tokens=n_tokens,
        n_prompt_tokens=answer.n_prompt_tokens,
        n_cached_tokens=answer.n_cached_tokens,
        time_to_first_token_s=answer.time_to_first_token_s,
        tokens_per_s=(n_tokens - 1) / answer.decode_s if n_tokens > 1 and answer.decode_s > 0 else None,
        seed=answer.seed,
        ranks=tuple(_rank(earlier.get(rank.rank), rank, max(n_tokens, 1)) for rank in after.ranks),
    )


def _rank(before: RankStatus | None, after: RankStatus, n_tokens: int) -> RankStatistics:
    def grown(name: str) -> float:
        start = float(getattr(before, name)) if before is not None else 0.0
        return max(0.0, float(getattr(after, name)) - start) / n_tokens

    return RankStatistics(after, grown("streamed_bytes"), grown("sent_bytes"), grown("allreduce_s"))


def headline(statistics: AnswerStatistics) -> str:
    """Tokens, times and seed in one line."""
    cached = f" ({statistics.n_cached_tokens} known)" if statistics.n_cached_tokens else ""
    speed = f"{statistics.tokens_per_s:.1f} tokens/s" if statistics.tokens_per_s is not None else "-"
    return (
        f"{statistics.n_prompt_tokens} prompt tokens{cached}, first token after "
        f"{duration(statistics.time_to_first_token_s)}; {statistics.n_tokens} tokens, {speed}; seed {statistics.seed}"
    )


def summary(statistics: AnswerStatistics) -> str:
    """Everything in one line, as a chat shows it after each answer."""
    speed = f"{statistics.tokens_per_s:.1f} tokens/s, " if statistics.tokens_per_s is not None else ""
    peaks = " + ".join(size(rank.state.peak_rss_bytes) for rank in statistics.ranks)
    return (
        f"{statistics.n_tokens} tokens, {speed}first after {duration(statistics.time_to_first_token_s)}; "
        f"peak memory {peaks}; per token: disk {size(statistics.disk_bytes)}, "
        f"network {size(statistics.network_bytes)}; seed {statistics.seed}"
    )


COLUMNS = ("rank", "device", "peak memory", "limit", "shard", "in memory", "disk/token", "network/token", "sums/token")


def rows(statistics: AnswerStatistics) -> list[tuple[str, ...]]:
    """The table of the ranks, in the order of :data:`COLUMNS`."""
    return [_row(rank) for rank in statistics.ranks]


def _row(rank: RankStatistics) -> tuple[str, ...]:
    state = rank.state
    return (
        str(state.rank),
        state.name,
        size(state.peak_rss_bytes),
        size(state.memory_limit_bytes) if state.memory_limit_bytes is not None else "-",
        size(state.shard_bytes),
        size(min(state.window_bytes, state.shard_bytes)),
        size(rank.disk_bytes),
        size(rank.network_bytes),
        duration(rank.allreduce_s),
    )


def as_text(columns: Sequence[str], table: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, for logs and files."""
    widths = [max(map(len, cells)) for cells in zip(columns, *table, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (columns, *table)]
