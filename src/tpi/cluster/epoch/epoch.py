"""An epoch as the master has it: plan, mesh, sums, and passes over all ranks. Opens and closes as one.

One thread runs passes; ``interrupt`` is for any. What outlives epochs is the membership's.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import msgspec

from tpi.cluster.allreduce.arithmetic import Arithmetic
from tpi.cluster.control.messages import Plan, PrefixDone
from tpi.cluster.epoch.footprint import limits_of
from tpi.cluster.epoch.host import RankHost
from tpi.cluster.epoch.opening import Opened
from tpi.cluster.epoch.planning import with_rank
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.epoch.seat import Seat
from tpi.cluster.membership.member import Member
from tpi.cluster.mesh.datapath import MasterDatapath, with_streams
from tpi.cluster.prefixes.keeping import follow
from tpi.cluster.prefixes.orders import PrefixOrder, encode_order
from tpi.errors import LinkError
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array
from tpi.trace import Kind

_KEEP_LIMIT_S = 600.0
"""A slow disk writes a long text in that time; who is gone is noticed before."""


class Epoch:
    """A context manager; ``close`` is idempotent. Takes over what was opened; the host, and where this cannot be made
    all, stays the caller's."""

    def __init__(self, plan: Plan, host: RankHost, opened: Opened, arithmetic: Arithmetic) -> None:
        self.plan, self.choice, self.detours = plan, opened.choice, opened.detours
        self._relays = opened.relays
        model = rank_model(plan)
        self._first_members = model.embedding_ranks
        self._datapath: MasterDatapath | None = None
        if opened.mesh is not None:
            spans = [share.first for share in plan.partition.shares[-1]]
            limits = limits_of(model, rank_settings(plan, 1))
            self._datapath = MasterDatapath(opened.mesh, limits, self._first_members, spans)
        self._seat = Seat(plan, host, opened.mesh, opened.choice, arithmetic)
        self._last: tuple[Pass, Float32Array | None] | None = None
        self._last_pass = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @cached_property
    def shard_bytes(self) -> tuple[int, ...]:
        """What each rank's part of the model has on disk."""
        models = (rank_model(with_rank(self.plan, rank)) for rank in range(self.plan.partition.n_ranks))
        return tuple(sum(piece.n_bytes for piece in model.pieces) for model in models)

    def run(self, work: Pass) -> tuple[Row, ...]:
        """One pass over all ranks; what is wanted of the sampled rows' logits. Blocks.

        Raises:
            LinkError: a worker is gone, or the epoch was interrupted.
            Cancelled: the epoch was interrupted.
            NumericError, KernelError, ModelFileError, ProtocolError: see ``runtime.rank.Rank.run``.
        """
        self._last_pass = work.pass_id
        if self._datapath is None:
            logits = self._seat.run(work)
            rows = () if logits is None else tuple(Row(row[: work.wanted.n_tokens or None].copy()) for row in logits)
            return with_streams(rows, self._seat.host.stream(len(rows))) if work.wanted.is_streamed else rows
        began = time.perf_counter()
        self._datapath.broadcast(work)
        shared = time.perf_counter()
        logits = self._seat.run(work)
        self._last = work, logits
        computed = time.perf_counter()
        rows = self._datapath.gather(work, logits)
        if work.wanted.is_streamed and rows:
            own = None if logits is None else self._seat.host.stream(len(rows))
            rows = with_streams(rows, self._datapath.gather_stream(work, own, self.plan.spec.n_embd))
        if (trace := self._seat.host.trace) is not None:
            trace.add(Kind.SHARE, began, shared, work.pass_id)
            trace.add(Kind.GATHER, computed, time.perf_counter(), work.pass_id)
        return rows

    def rest(self) -> tuple[Row, ...]:
        """All logits of the last pass; raises as ``run``."""
        assert self._datapath is not None and self._last is not None, "who is alone gives all of every row"
        return self._datapath.gather_rest(*self._last)

    def keep(self, order: PrefixOrder, members: Sequence[Member], folder: Path) -> tuple[PrefixDone, ...]:
        """Every rank follows the order, this one in ``folder``, after the passes before; what came of it, in rank
        order. Blocks.

        Raises:
            LinkError: a worker is gone.
        """
        numbers = [member.expect() for member in members]
        for member, number in zip(members, numbers, strict=True):
            assert self._datapath is not None
            told = msgspec.structs.replace(order, number=number)
            self._datapath.send_order(self._last_pass, encode_order(told), member.rank)
        done = [follow(order, self.plan, self._seat.host, folder)]
        done += (wait_done(member, number) for member, number in zip(members, numbers, strict=True))
        return tuple(done)

    def interrupt(self, error: LinkError) -> None:
        """Ends what runs, here, with ``error`` or ``Cancelled``; no pass can run afterwards."""
        self._seat.interrupt(error)

    def close(self) -> None:
        """Ends links and relays; the host can be connected again afterwards."""
        self._seat.close()
        self._relays.close()


def wait_done(member: Member, number: int, limit_s: float = _KEEP_LIMIT_S) -> PrefixDone:
    """What came of an order. Whoever is late has done nothing that counts: what comes next waits for it there.

    Raises:
        LinkError: the worker is gone.
    """
    answer = member.wait_answer(number, limit_s)
    if answer is not None and isinstance(answer.message, PrefixDone):
        return answer.message
    if member.end is not None:
        raise member.end
    return PrefixDone(number, 0, f"its disk needs more than {limit_s:g} s: look after it, or use a shorter text")


@dataclass(frozen=True)
class Resumed:
    """An epoch that has ended, and after which pass another goes on with what it kept."""

    epoch: Epoch
    last_pass: int
