"""A formed cluster: runs passes on the current epoch, goes from one epoch to the next, tells its status, ends in order.

One thread runs passes and opens epochs; any thread may ask for the status or cancel a pass. Owns the current epoch and
the master's rank.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self

import msgspec

from tpi.cluster.control.messages import EndEpoch, Plan, PrefixDone, StatusRequest
from tpi.cluster.epoch.epoch import Epoch, Resumed
from tpi.cluster.epoch.host import RankHost
from tpi.cluster.epoch.rankplan import rank_settings
from tpi.cluster.membership.membership import Membership
from tpi.cluster.prefixes.orders import PrefixOrder
from tpi.cluster.reports import ClusterStatus, RankStatus
from tpi.cluster.tracing.tracing import Tracing
from tpi.config import MasterSettings
from tpi.errors import Cancelled, LinkError, TpiError, UsageError
from tpi.model.architectures import blocks_of
from tpi.model.flow import flows_of, n_stages
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.retention import Retention

_STATUS_TIMEOUT_S = 2.0
_LATE_FACTOR = 10.0
_LEAST_LATE_S = 2.0
_UNUSUAL_PASSES = 3
"""The first passes of an epoch, which fill windows, are no measure of what is usual."""


class OpensEpochs(Protocol):
    """What a cluster needs of the master (``master.Master``)."""

    tracing: Tracing | None

    def open_epoch(
        self, number: int, settings: MasterSettings, host: RankHost | None, resumed: Resumed | None = None
    ) -> tuple[Epoch, RankHost]:
        """Opens an epoch with the members that are here; ``host`` is that of the epoch before, which is ``resumed`` if
        what it kept is to stay."""

    def wait_ended(self, number: int) -> int:
        """Waits until every member has ended the epoch; gives the last pass that was through on all of them."""


class Cluster:
    """All ranks, connected. A context manager; ``close`` is idempotent and ends the workers."""

    def __init__(self, master: OpensEpochs, membership: Membership, settings: MasterSettings, number: int) -> None:
        """Opens the first epoch.

        Raises:
            TpiError: see ``master.Master.form``.
        """
        self._master, self._membership, self._settings = master, membership, settings
        self._reason = ""
        self._is_closed = self._is_cancelled = False
        self._host: RankHost | None = None
        self._epoch: Epoch | None = None
        self._latest: Epoch | None = None
        """The current epoch, or after its end the one before: what there is to tell of."""
        self._ending: int | None = None
        """An epoch that all ranks were told to end, and that some may still be in."""
        self._number = number
        self.n_forgotten = 0
        """How often everything was forgotten that was computed before."""
        self._last_pass = 0
        """The last that was through, since then."""
        self._pass_under_way: int | None = None
        self._unwanted_pass: int | None = None
        self._passing = threading.RLock()  # a signal's handler may come while this thread has it
        self._pass_started_s = 0.0
        self._usual_s = 0.0
        self._n_passes = 0
        self._is_late_told = False
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._reason = reason_of(error)
        self.close()

    def close(self) -> None:
        """Tells the workers to end, with the reason if there was an error, and frees everything."""
        if self._is_closed:
            return
        self._is_closed = True
        self.save_trace()
        self._membership.on_end = lambda error: None
        self._membership.on_watch = lambda: None
        self._membership.dismiss(self._reason)
        if self._epoch is not None:
            self._epoch.close()
        if self._host is not None:
            self._host.close()

    @property
    def epoch(self) -> int:
        """The number of the current epoch."""
        return self._number

    @property
    def retention(self) -> Retention:
        """A new one, of a sequence of which nothing is kept yet."""
        return Retention(blocks_of(self.spec), self._settings_of_ranks)

    def prepare(self) -> None:
        """Opens a new epoch if a pass was stopped. What was computed before that one stays, unless a rank had not come
        so far: where layers lie on one device after the other, the first may be some passes ahead. Then all of it is
        forgotten.

        Raises:
            TpiError: see ``master.Master.form``.
        """
        self._current()

    def check_alive(self) -> None:
        """Any thread, while no pass runs.

        Raises:
            LinkError: a worker is gone or cannot go on; no further pass can run.
        """
        self._membership.check_alive()

    def run(self, work: Pass) -> tuple[Row, ...]:
        """One pass over all ranks; what is wanted of the sampled rows' logits. Blocks.

        Raises:
            Cancelled: ``cancel`` was called.
            LinkError: a worker is gone or cannot go on; no further pass can run.
            NumericError, KernelError, ModelFileError: see ``runtime.rank.Rank.run``.
        """
        epoch = self._current()
        started_s = time.monotonic()
        rows = self._under_way(work.pass_id, lambda: epoch.run(work))
        self._last_pass = work.pass_id
        self._n_passes += 1
        if self._n_passes > _UNUSUAL_PASSES:
            self._usual_s = max(self._usual_s * 0.9, time.monotonic() - started_s)
        return rows

    def rest(self) -> tuple[Row, ...]:
        """All logits of the rows that the last pass sampled; raises as ``run``."""
        assert self._epoch is not None, "after a pass that was stopped there is nothing left"
        return self._under_way(self._last_pass, self._epoch.rest)

    def keep(self, order: PrefixOrder) -> tuple[PrefixDone, ...]:
        """Every rank saves or restores its part of a prefix, between two passes; what came of it, in rank order.
        Blocks.

        Raises:
            UsageError: there is no folder for that.
            LinkError: a worker is gone or cannot go on; no further pass can run.
        """
        folder = self._settings.slot_folder
        if folder is None:
            raise UsageError("nothing is saved here: serve with a folder for slots")
        epoch = self._current()
        try:
            return epoch.keep(order, self._membership.ranked, folder)
        except (LinkError, Cancelled) as error:
            raise self._explain(error) from None

    def cancel(self, pass_id: int | None = None) -> None:
        """Ends the pass that runs, on every rank, within one graph node; or the one of this number, which may not have
        begun, or be over. From any thread, and from signal handlers."""
        with self._passing:
            if pass_id is not None and pass_id != self._pass_under_way:
                self._unwanted_pass = pass_id
            elif self._epoch is not None and self._pass_under_way is not None:
                self._is_cancelled = True
                self._epoch.interrupt(LinkError("the pass was stopped"))

    def change(self, **settings: Any) -> None:
        """Goes on with other ``shares``, ``layout``, ``wire`` or ``allreduce``: a new epoch, in the same processes.

        Raises:
            TpiError: see ``master.Master.form``; the cluster can do nothing any more.
        """
        self._stop_epoch()
        self._wait_ended()
        self._settings = dataclasses.replace(self._settings, **settings)
        self._open()

    def status(self) -> ClusterStatus:
        """Every rank's figures; of a worker that does not answer within two seconds those that it told last. Any
        thread.

        Raises:
            LinkError: the cluster is being formed.
        """
        epoch, host, members = self._latest, self._host, self._membership.ranked
        if epoch is None or host is None:
            raise LinkError("the cluster is still starting: its devices fetch their slices")
        asked = []
        for member in members:
            try:
                asked.append((member, member.ask(StatusRequest)))
            except LinkError:
                continue
        deadline_s, silent = time.monotonic() + _STATUS_TIMEOUT_S, []
        ranks = [host.status()]
        for member, number in asked:
            if member.wait_answer(number, max(deadline_s - time.monotonic(), 0.0)) is None:
                silent.append(member.name)
            if member.status is not None:
                ranks.append(member.status)
        plan = epoch.plan
        return ClusterStatus(
            model=plan.spec.name,
            model_digest=plan.spec.digest,
            epoch=plan.epoch,
            context=plan.n_cells,
            choice=epoch.choice,
            detours=epoch.detours,
            ranks=_with_shares(ranks, epoch.shard_bytes),
            silent=tuple(silent),
            notes=self._membership.notes.latest(),
        )

    def save_trace(self) -> None:
        """Writes what all ranks did since the last time, if it is traced. Between passes; blocks for a moment."""
        tracing = self._master.tracing
        if tracing is not None and self._epoch is not None:
            tracing.collect(self._plan, self._membership.ranked)

    # Epochs.

    @property
    def _plan(self) -> Plan:
        assert self._epoch is not None
        return self._epoch.plan

    def _under_way(self, pass_id: int, run: Callable[[], tuple[Row, ...]]) -> tuple[Row, ...]:
        """What ``run`` gives. Until it returns it can be cancelled, and what was cancelled gives nothing, even if that
        came too late to stop anything."""
        with self._passing:
            if pass_id == self._unwanted_pass:
                raise Cancelled("nobody wants the pass")
            self._pass_under_way, self._pass_started_s = pass_id, time.monotonic()
        try:
            rows = run()
        except (LinkError, Cancelled) as error:
            raise self._explain(error) from None
        except TpiError:
            if self._is_cancelled:  # its links are shut down
                self._stop_epoch()
            raise
        finally:
            with self._passing:
                self._pass_under_way, self._pass_started_s = None, 0.0
        if self._is_cancelled:
            raise self._explain(Cancelled())
        return rows

    def _current(self) -> Epoch:
        """The epoch to run on: after a pass was stopped, a new one."""
        if self._epoch is None:
            are_through = self._wait_ended() >= self._last_pass
            self._open(Resumed(self._latest, self._last_pass) if are_through and self._latest is not None else None)
        assert self._epoch is not None
        return self._epoch

    def _open(self, resumed: Resumed | None = None) -> None:
        self._is_cancelled = False
        self._epoch, self._host = self._master.open_epoch(self._number, self._settings, self._host, resumed)
        if resumed is None:
            self.n_forgotten, self._last_pass = self.n_forgotten + 1, 0
        self._latest = self._epoch
        self._n_passes, self._usual_s = 0, 0.0
        plan = self._epoch.plan
        self.spec, self.n_cells = plan.spec, plan.n_cells
        self.n_context = min(plan.n_cells, plan.spec.n_context_train)
        self.max_tokens, self.max_sampled, self.n_sequences = plan.max_tokens, plan.max_sampled, plan.n_sequences
        self._settings_of_ranks = rank_settings(plan, 1)
        self.is_reproducible = plan.is_reproducible
        self.is_staged = n_stages(flows_of(blocks_of(plan.spec), plan.partition)) > 1
        """Layers lie on one device after the other, which work at the same time only while there are several passes."""
        self._membership.on_end = self._epoch.interrupt
        self._membership.on_watch = self._watch
        self._membership.check_alive()

    def _stop_epoch(self) -> None:
        """Tells all ranks to end the epoch, and ends it here; the host stays. Does not wait for the others: whoever
        stops a pass on a device that hangs has no time to lose."""
        if self._epoch is None:
            return
        self.save_trace()
        epoch, self._epoch = self._epoch, None
        for member in self._membership.ranked:
            with suppress(LinkError):  # who is gone is noticed when an epoch is opened
                member.send(EndEpoch(self._number, self._last_pass))
        epoch.close()
        self._ending = self._number
        self._number += 1
        if self._host is not None:
            self._host.allow()

    def _wait_ended(self) -> int:
        """See ``OpensEpochs.wait_ended``."""
        if self._ending is None:
            return 0
        last_pass = self._master.wait_ended(self._ending)
        self._ending = None
        return last_pass

    def _explain(self, error: LinkError | Cancelled) -> LinkError | Cancelled:
        """Why a pass has ended: because it was to, or because a worker is gone."""
        if self._is_cancelled:
            self._stop_epoch()
            return Cancelled("the pass was stopped")
        return self._membership.wait_end() or error

    # The membership's watching thread.

    def _watch(self) -> None:
        if self._master.tracing is not None:
            self._master.tracing.read_clocks(self._membership.ranked)
        self._look_for_late()

    def _look_for_late(self) -> None:
        """A rank that lives but does nothing is reported, not cut."""
        started_s, limit_s = self._pass_started_s, max(self._usual_s * _LATE_FACTOR, _LEAST_LATE_S)
        if not started_s or not self._usual_s or time.monotonic() - started_s < limit_s:
            self._is_late_told = self._is_late_told and bool(started_s)
            return
        if not self._is_late_told:
            self._is_late_told = True
            busy = [rank for rank in self.status().ranks if rank.doing not in ("idle", "sum")]
            who = ", ".join(f"{rank.name} (rank {rank.rank}) has been at its {rank.doing}" for rank in busy)
            self._membership.notes.add(
                f"a pass takes {time.monotonic() - started_s:.1f} s, usual are {self._usual_s:.1f} s: "
                f"{who or 'all ranks wait for each other'}"
            )


def reason_of(error: BaseException) -> str:
    """What workers are told when ``error`` ends the session."""
    return f"the master ended the session: {error}" if str(error) else "the master was stopped"


def _with_shares(ranks: Sequence[RankStatus], shard_bytes: Sequence[int]) -> tuple[RankStatus, ...]:
    """Each rank's part of the bytes of all shards, those of ranks that are silent included."""
    total = sum(shard_bytes) or 1
    return tuple(msgspec.structs.replace(rank, share=shard_bytes[rank.rank] / total) for rank in ranks)
