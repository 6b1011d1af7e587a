"""The master: waits for workers, and opens epochs with those who are here. ``form`` makes a ``Cluster``.

Owns membership and the model's description. One thread forms the cluster and runs its passes.
"""

import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Self

import msgspec

from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.cluster import Cluster, reason_of
from tpi.cluster.control.messages import EpochEnded, Offer
from tpi.cluster.epoch.epoch import Epoch, Resumed
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.opening import Opening
from tpi.cluster.epoch.planning import FIRST_EPOCH, Device, assign_ranks, check_offer, check_settings, make_plan
from tpi.cluster.epoch.preparing import Provision, prepare_host
from tpi.cluster.epoch.rankplan import rank_model
from tpi.cluster.membership.member import Member, News
from tpi.cluster.membership.membership import Membership
from tpi.cluster.reports import Ready, Remark, Report, Transfer, Waiting
from tpi.cluster.tracing.tracing import Tracing
from tpi.cluster.transfer.stock import Stock, find_stock
from tpi.config import MasterSettings
from tpi.errors import LinkError, LinkTimeoutError, MissingDevicesError
from tpi.hub.reader import read_model
from tpi.model.architectures import model_of, read_spec
from tpi.runtime.ggml.quantize import quantized
from tpi.runtime.rankmodel import RankModel
from tpi.weights.identity import Digesting
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.shard import ByteProgress
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource
from tpi.weights.stored import lies_in_gguf, stored_from_gguf
from tpi.weights.strips import Strips, limit_for

_POLL_S = 0.2
_END_LIMIT_S = 20.0
"""A worker ends a pass within one graph node, and its links at once."""


class Master:
    """The master's open port, with the model read. A context manager; ``close`` is idempotent."""

    def __init__(self, settings: MasterSettings) -> None:
        """Raises:
        UsageError: the settings do not fit the model.
        ModelFileError, UnsupportedModelError: the model cannot be read or computed.
        LinkError: the port cannot be opened.
        """
        self._settings = settings
        self.gguf = quantized(read_model(settings.model), settings.quant)
        self.spec = read_spec(self.gguf, digest="")
        """Without its digest until ``form`` has read the whole model."""
        check_settings(settings, self.spec)
        self._store = ShardStore(settings.folders.shards / settings.name)
        self._strips = Strips(limit_for(settings.resources.memory_bytes))
        self._device: HostDevice | None = None
        self.tracing = Tracing(settings.trace, settings.name) if settings.trace is not None else None
        self._report: Report = lambda event: None
        self._check: Callable[[], None] = lambda: None
        self._beside_bytes = 0
        try:
            folder = settings.folders.state / "authority"
            self.membership = Membership(folder, settings.name, settings.bind, settings.port)
        except BaseException:
            self._close_trace()
            raise
        if self.tracing is not None:
            self.tracing.on_failure = self.membership.notes.add
        self.join_key, self.addresses = self.membership.join_key, self.membership.addresses

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the port, and the links of those who came too late."""
        self.membership.close()
        self._store.close()
        self._close_trace()

    def form(self, report: Report, check: Callable[[], None] = lambda: None, beside_bytes: int = 0) -> Cluster:
        """Waits for the workers, plans, lets every rank prepare, opens the first epoch; blocks. Meanwhile reads the
        whole model for its digest, unless an earlier session has done that.

        ``check`` is called about every 0.2 s and may raise. ``beside_bytes`` of memory are kept for what this process
        does beside that.

        Raises:
            LinkError: not enough workers came in time, or one went away or cannot go on.
            MemoryBudgetError, DiskSpaceError, ModelFileError: this device cannot hold its share.
        """
        self._report, self._check, self._beside_bytes = report, check, beside_bytes
        membership = self.membership
        for remark in model_of(self.spec).remarks:
            report(Remark(remark))
        try:
            with Digesting(self.gguf, self._settings.folders.cache) as digesting:
                self._wait_for_workers(digesting)
            membership.close_door()
            offers = [(member.name, _offer_of(member)) for member in membership.members]
            for member, rank in zip(membership.members, assign_ranks(offers, self.spec), strict=True):
                member.rank = rank
            return Cluster(self, membership, self._settings, FIRST_EPOCH)
        except BaseException as error:
            membership.dismiss(reason_of(error))
            raise

    # For the cluster.

    def open_epoch(
        self, number: int, settings: MasterSettings, host: RankHost | None, resumed: Resumed | None = None
    ) -> tuple[Epoch, RankHost]:
        """Opens an epoch with the members that are here; ``host``, that of the epoch before, is taken over or closed.
        ``resumed`` is that epoch, if this one is to go on with what it kept.

        Raises:
            TpiError: see ``form``.
        """
        check_settings(settings, self.spec)
        members = self.membership.ranked
        if self._device is None:
            self._device = HostDevice.measured(settings.name, settings.resources, self._beside_bytes)
        if resumed is None:
            devices = [Device(settings.name), *(Device(member.name, _offer_of(member)) for member in members)]
            plan = make_plan(settings, self.spec, number, devices, self._device.process_bytes)
        else:
            plan = msgspec.structs.replace(resumed.epoch.plan, epoch=number, last_pass=resumed.last_pass)
        opening = Opening(self.membership, plan, settings, self._report, self._check)
        opening.send_plans(self.gguf, self._strips)
        host = prepare_host(plan, self._device, self._provision(settings, rank_model(plan), opening), host)
        host.trace_to(self.tracing.own if self.tracing is not None else None)
        with ExitStack() as stack:
            stack.enter_context(host)
            opening.wait_prepared()
            self._strips.forget()
            known = resumed.epoch.choice if resumed is not None else None
            opened = stack.enter_context(opening.open_links(settings.allreduce, known))
            arithmetic = make_arithmetic(settings.folders.cache)
            epoch = stack.enter_context(Epoch(plan, host, opened, arithmetic))
            if self.tracing is not None:
                self.tracing.read_clocks(members)
            self._report(Ready(plan.partition.n_ranks, opened.choice, opened.detours, plan.n_cells))
            stack.pop_all()
        return epoch, host

    def wait_ended(self, number: int) -> int:
        """Waits until every member has ended the epoch ``number``; gives the pass that was the last to be through on
        all of them, or more if there are none.

        Raises:
            LinkError: a worker is gone, or does not end it.
        """
        missing, last_pass = set(self.membership.ranked), sys.maxsize
        deadline_s = time.monotonic() + _END_LIMIT_S
        while missing:
            self.membership.check_alive()
            for member, news in self.membership.take(_POLL_S):
                if isinstance(news, LinkError):
                    raise news
                if isinstance(news, EpochEnded) and news.epoch == number:
                    missing.discard(member)
                    last_pass = min(last_pass, news.last_pass)
            if time.monotonic() > deadline_s:
                names = ", ".join(member.title for member in missing)
                raise LinkTimeoutError(f"{names} did not stop within {_END_LIMIT_S:g} s: start it again")
        return last_pass

    def _close_trace(self) -> None:
        if self.tracing is not None:
            self.tracing.close()

    def _provision(self, settings: MasterSettings, model: RankModel, opening: Opening) -> Provision:
        is_alone = model.partition.n_ranks == 1 and lies_in_gguf(self.gguf, model.pieces)
        whole = stored_from_gguf(self.gguf, model.pieces) if is_alone else None

        def stock(model: RankModel, repacker: RepackingKernels | None) -> Stock:
            if whole is not None and repacker is None:
                return Stock(whole, disk_note=self._store.disk_note(model.spec.digest))
            progress = self._progress("cut" if whole is None else "rearranged", opening.poll)
            strips = self._strips.reader(lambda: model.rank, opening.poll)
            found = find_stock(self._store, model, repacker, lambda: GgufSource(self.gguf, strips), progress)
            strips.leave()
            return found

        return Provision(self._store, settings.folders.cache, stock, self._report, whole)

    def _progress(self, how: str, poll: Callable[[], None]) -> ByteProgress:
        last_s = 0.0

        def tell(n_done: int, n_bytes: int) -> None:
            nonlocal last_s
            if time.monotonic() - last_s > _POLL_S or n_done == n_bytes:
                last_s = time.monotonic()
                self._report(Transfer(0, self._settings.name, n_done, n_bytes, how))
                poll()

        return tell

    def _wait_for_workers(self, digesting: Digesting) -> None:
        wanted, wait_s, members = self._settings.n_workers, self._settings.wait_s, self.membership.members
        started = time.monotonic()
        self._report(Waiting(0, wanted, None))
        early: dict[Member, News] = {}  # offers of shards, until it is known of which model they must be
        while (n_joined := self._n_joined()) < wanted or not self.spec.digest:
            if n_joined < wanted and not early and wait_s is not None and time.monotonic() - started > wait_s:
                raise MissingDevicesError(
                    f"{len(members)} of {wanted} devices joined within {wait_s:g} s: start `tpi join` on the others"
                )
            self._check()
            self._take_digest(digesting, _POLL_S if n_joined == wanted else 0)
            self.membership.admit(wanted)
            if self.spec.digest:
                self._take_offers(early.items())
                early.clear()
            for member, message in self.membership.take(_POLL_S if n_joined < wanted else 0):
                if member in early:
                    del early[member]
                    message = message if isinstance(message, LinkError) else LinkError(f"{member.title} offers twice")
                if not self.spec.digest and isinstance(message, Offer) and message.locked is not None:
                    early[member] = message
                else:
                    self._take_offers([(member, message)])

    def _take_offers(self, offers: Iterable[tuple[Member, News]]) -> None:
        for member, message in offers:
            if member in self.membership.members:
                self.membership.take_offer(member, message, self._check_offer)
                self._report(Waiting(self._n_joined(), self._settings.n_workers, member.name))

    def _n_joined(self) -> int:
        return sum(member.offer is not None for member in self.membership.members)

    def _take_digest(self, digesting: Digesting, wait_s: float) -> None:
        """Completes the spec, or tells how far the reading is."""
        digest = digesting.try_wait(wait_s)
        if digest is not None:
            self.spec = msgspec.structs.replace(self.spec, digest=digest)
        elif digesting.n_done:
            self._report(Transfer(0, self._settings.name, digesting.n_done, digesting.n_bytes, "reads its model"))

    def _check_offer(self, member: Member, offer: Offer) -> None:
        others = [other.offer for other in self.membership.members if other is not member and other.offer is not None]
        check_offer(self._settings, self.spec, offer, others)


def _offer_of(member: Member) -> Offer:
    assert member.offer is not None
    return member.offer
