"""What a cluster tells about itself: the state of every rank, and the events of its start. Data only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec


class SumWay(msgspec.Struct, frozen=True):
    """A way to add up, and how long it takes for ``n_tokens`` rows: as foretold, and as measured (0: it was not)."""

    algorithm: str
    payload: str
    n_tokens: int
    predicted_s: float
    measured_s: float = 0.0


class Choice(msgspec.Struct, frozen=True):
    """How sums are added up in an epoch: ``few`` tokens at once, as when an answer grows, or ``many``, as when a prompt
    is read. ``tried`` are all ways that were measured, the chosen ones among them."""

    few: SumWay
    many: SumWay
    max_few_tokens: int
    latency_s: float
    """One way, between any two devices: the largest."""
    bytes_per_s: float
    """What every device can send and receive at once while all others do."""
    tried: tuple[SumWay, ...] = ()


class Detour(msgspec.Struct, frozen=True):
    """Two workers that cannot reach each other: their data goes through the master."""

    ranks: tuple[int, int]
    reason: str


class RankStatus(msgspec.Struct, frozen=True):
    """One rank's figures since its start; times in seconds, sizes in bytes."""

    rank: int
    name: str
    memory_limit_bytes: int | None
    planned_bytes: int
    """The peak that was planned: when all cells are written and the window is full."""
    peak_rss_bytes: int
    rss_bytes: int
    shard_bytes: int
    window_bytes: int
    pinned_bytes: int
    n_pinned: int
    n_pieces: int
    disk_mode: str
    streamed_bytes: int
    hold_s: float
    compute_s: float
    allreduce_s: float
    sent_bytes: int
    received_bytes: int
    n_passes: int
    n_sums: int
    doing: str
    """idle, disk, compute or sum: now."""
    share: float
    """This rank's part of the bytes of all shards."""
    n_rechosen: int = 0
    """Sums that were made anew because ranks had chosen different experts."""


class AnswerFigures(msgspec.Struct, frozen=True):
    """What a master was asked since its start, and what there is to do now. Of the prompts' tokens
    ``n_cached_tokens`` were not computed again. So many cells are pinned: what they hold is never dropped."""

    n_running: int
    n_waiting: int
    n_prompt_tokens: int
    n_cached_tokens: int
    n_tokens: int
    n_pinned_cells: int = 0


class ClusterStatus(msgspec.Struct, frozen=True):
    """What ``tpi status`` prints."""

    model: str
    model_digest: str
    epoch: int
    context: int
    choice: Choice | None
    """None: the master is alone, and nothing is added up."""
    detours: tuple[Detour, ...]
    ranks: tuple[RankStatus, ...]
    silent: tuple[str, ...] = ()
    """Names of devices that did not tell their figures in time: ``ranks`` has what they told last, if anything."""
    notes: tuple[str, ...] = ()
    """What happened that the user should know: who was turned away, who is late."""
    answers: AnswerFigures | None = None
    """None: the engine is not there yet."""


@dataclass(frozen=True)
class Waiting:
    """The master waits for devices: ``n_joined`` of ``n_workers`` are here; ``name`` joined last."""

    n_joined: int
    n_workers: int
    name: str | None


@dataclass(frozen=True)
class Transfer:
    """A rank's shard is being put together: ``n_done`` of ``n_bytes``; ``how`` is cut, received or rearranged, or reads
    its model before that."""

    rank: int
    name: str
    n_done: int
    n_bytes: int
    how: str


@dataclass(frozen=True)
class Loading:
    """A rank has its shard and fills its window."""

    rank: int
    name: str


@dataclass(frozen=True)
class Remark:
    """Something that the user should know, and that stops nothing; one line."""

    text: str


@dataclass(frozen=True)
class Ready:
    """All ranks can run passes. ``choice`` None: the master is alone. ``context``: cells of all sequences; 0: not
    said."""

    n_ranks: int
    choice: Choice | None = None
    detours: tuple[Detour, ...] = ()
    context: int = 0


Event: TypeAlias = Waiting | Transfer | Loading | Remark | Ready
Report: TypeAlias = Callable[[Event], None]
"""Called from the thread that forms the cluster; must not block."""
