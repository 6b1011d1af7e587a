"""A worker's life: join, offer, and then whatever the master says, epoch after epoch, until it ends.

A state machine over the master's messages: a plan is prepared, links are opened, measured, passes run until the epoch
ends, and the next plan may come. What a plan leaves unchanged stays: the shard, the window, the memory that was
measured once. The calling thread does all that; the control link's thread answers questions about status, and ends what
runs when the master says so or is gone (``masterlink``). The acceptor's threads take calls of other workers.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Self

from tpi.cluster.allreduce.arithmetic import Arithmetic, make_arithmetic
from tpi.cluster.control.messages import (
    AnyMessage,
    Begin,
    ClockReply,
    ClockRequest,
    EndEpoch,
    EpochEnded,
    LinksOpened,
    Measure,
    OpenLinks,
    Plan,
    Prepared,
    Progress,
    Remarked,
    Revoked,
    RunChunk,
    StatusReply,
    StatusRequest,
    TraceReply,
    TraceRequest,
    one_line,
)
from tpi.cluster.epoch.footprint import limits_of
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.links import WorkerLinks
from tpi.cluster.epoch.measuring import measure
from tpi.cluster.epoch.plancheck import check_plan
from tpi.cluster.epoch.preparing import Provision, prepare_host
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.epoch.seat import Seat
from tpi.cluster.holdings import Holdings
from tpi.cluster.masterlink import MasterLink
from tpi.cluster.mesh.datapath import WorkerDatapath, first_speaker
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import open_mesh
from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor, close_untaken
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.connect import OpenedLink, enter_cluster
from tpi.cluster.pairing.gate import WorkerGate
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.cluster.prefixes.keeping import follow
from tpi.cluster.prefixes.orders import decode_order
from tpi.cluster.prefixes.prefixfile import remove_unfinished
from tpi.cluster.reports import Event, Ready, Remark, Report, Transfer
from tpi.cluster.transfer.slices import LinkSource
from tpi.config import WorkerSettings
from tpi.errors import Cancelled, LinkError, ProtocolError, TpiError
from tpi.trace import Trace
from tpi.weights.shards.shard import ByteProgress

MAX_ARRIVED = 1024
TRACE_EVENTS = 6000
"""In one message."""
_PROGRESS_STEPS = 50
_REST_LIMIT_S = 0.25
"""What the master has come through is computed to its end here when it ends an epoch, or all were to be forgotten;
no longer than this, since people wait for whoever stops a pass."""


Prepare = Callable[[Plan, HostDevice, Provision, RankHost | None], RankHost]
"""See ``epoch.preparing.prepare_host``."""


def run_worker(settings: WorkerSettings, report: Report, prepare: Prepare = prepare_host) -> None:
    """Joins the cluster of ``settings.key`` and works in it; returns when the master ends the session. ``prepare``
    makes what computes: a measurement may have something else.

    Raises:
        TpiError: whatever goes wrong, here or at the master; one line.
    """
    key = JoinKey.decode(settings.key)
    if settings.master is not None:
        key = JoinKey((Address.parse(settings.master),), key.fingerprint, key.secret)
    with Holdings(settings) as holdings:
        opened, identity = enter_cluster(key, settings.name, IdentityStore(settings.folders.state / "identities"))
        with _Worker(settings, holdings, opened, identity, report, prepare) as worker:
            worker.run()


class _Worker:
    """One session. A context manager that ends links and threads."""

    def __init__(
        self,
        settings: WorkerSettings,
        holdings: Holdings,
        opened: OpenedLink,
        identity: Identity,
        report: Report,
        prepare: Prepare,
    ) -> None:
        self._settings, self._holdings, self._opened, self._identity = settings, holdings, opened, identity
        self._report, self._make_host = report, prepare
        self._arrived: queue.Queue[AcceptedLink] = queue.Queue(MAX_ARRIVED)
        self._device: HostDevice | None = None
        self._plan: Plan | None = None
        self._host: RankHost | None = None
        self._links: WorkerLinks | None = None
        self._mesh: Mesh | None = None
        self._source: LinkSource | None = None
        self._told: tuple[str, int] | None = None
        self._rest: threading.Timer | None = None
        """Ends what the master has come through, but this device has not."""
        self._trace: Trace | None = None
        self._stack = ExitStack()
        self._gate = WorkerGate(identity)
        host = opened.socket.getsockname()[0]
        of_master = self._identity.fingerprint.hex()[:16]
        self._prefixes = settings.folders.state / "prefixes" / settings.name / of_master
        remove_unfinished(self._prefixes)
        self._hosts = (host,) if not host.startswith("fe80") else ()
        acceptor = Acceptor(listen(host, settings.port), self._gate, self._take_link)
        self._acceptor = self._stack.enter_context(acceptor)
        self._master = self._stack.enter_context(MasterLink(opened, self))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_rest()
        self._close_links()
        if self._host is not None:
            self._host.close()
        self._stack.close()
        close_untaken(self._arrived)

    def run(self) -> None:
        """The whole session."""
        try:
            self._work()
        except BaseException as error:
            if self._master.end is not None and isinstance(error, TpiError):
                if self._master.is_farewell:
                    return
                raise self._master.end from None
            self._master.tell_failure(error)
            raise

    # The states.

    def _work(self) -> None:
        resources, cache = self._settings.resources, self._settings.folders.cache
        self._master.send(self._holdings.offer(resources, cache, self._hosts, self._acceptor.port))
        while True:
            message = self._master.next()
            match message:
                case Plan():
                    self._prepare(message)
                case OpenLinks():
                    self._open_links(message)
                case Measure():
                    self._measure(message)
                case Begin():
                    self._run_passes(message)
                case EndEpoch():
                    self._leave(message)
                case _:
                    raise ProtocolError(f"the master sent {type(message).__name__} out of turn")

    def _prepare(self, plan: Plan) -> None:
        check_plan(plan)
        if self._device is None:
            self._device = HostDevice.measured(self._identity.name, self._settings.resources)
        before, self._host, self._plan = self._host, None, plan
        self._host = self._make_host(plan, self._device, self._provision(plan), before)
        self._trace = (self._trace or Trace()) if plan.is_traced else None
        self._host.trace_to(self._trace)
        self._master.send(Prepared(plan.epoch))

    def _open_links(self, message: OpenLinks) -> None:
        plan, _ = self._prepared(message.epoch)
        if self._links is None:
            self._links = WorkerLinks(plan.epoch, self._identity, self._opened.address, self._gate)
        try:
            failures = self._links.open(message, self._arrived, lambda: self._master.check_epoch(plan.epoch))
        except Cancelled:
            return
        self._master.send(LinksOpened(message.epoch, failures))

    def _measure(self, message: Measure) -> None:
        plan, _ = self._prepared(message.epoch)
        with self._master.unless_ended(plan.epoch):
            self._master.send(measure(self._open_mesh(plan), plan, message, self._arithmetic()))

    def _run_passes(self, message: Begin) -> None:
        plan, host = self._prepared(message.epoch)
        model = rank_model(plan)
        is_first = plan.rank in model.embedding_ranks
        spans = [share.first for share in plan.partition.shares[-1]]
        span, speaks = spans[plan.rank], plan.rank == first_speaker(spans)
        with self._master.unless_ended(plan.epoch):
            mesh = self._open_mesh(plan)
            limits = limits_of(model, rank_settings(plan, 1))
            datapath = WorkerDatapath(mesh, limits, is_first, span, lambda order: self._keep(order, plan, host))
            with Seat(plan, host, mesh, message.choice, self._arithmetic()) as seat:
                self._report(Ready(plan.partition.n_ranks, message.choice))
                work = logits = None
                while True:
                    order = datapath.receive()
                    if order is not None:
                        work = order
                        logits = seat.run(work)
                        datapath.send_logits(work, logits)
                        if speaks and logits is not None and work.wanted.is_streamed:
                            datapath.send_stream(work, host.stream(len(logits)))
                    elif work is not None:
                        datapath.send_rest(work, logits)

    def _keep(self, order: bytes, plan: Plan, host: RankHost) -> None:
        """Saves a beginning of a text on this device's disk, or puts it back."""
        decoded = decode_order(order, plan.n_cells, plan.n_sequences)
        done = follow(decoded, plan, host, self._prefixes)
        if done.refusal:
            self._report(Remark(f"a text was not saved or restored in {self._prefixes}: {done.refusal}"))
        self._master.send(done)

    def _leave(self, message: EndEpoch) -> None:
        """The epoch is over: nothing of it stays but what the next may use."""
        self._end_rest()
        self._close_links()
        close_untaken(self._arrived)
        last_pass = 0
        if self._host is not None:
            self._host.allow()
            last_pass = self._host.last_pass
        self._master.send(EpochEnded(message.epoch, last_pass))

    def _end_rest(self) -> None:
        if (rest := self._rest) is not None:
            rest.cancel()
            rest.join()
            self._rest = None

    # What the states use.

    def _prepared(self, epoch: int) -> tuple[Plan, RankHost]:
        if self._plan is None or self._host is None or self._plan.epoch != epoch:
            raise ProtocolError(f"the master speaks of epoch {epoch}, which has no plan here")
        return self._plan, self._host

    def _open_mesh(self, plan: Plan) -> Mesh:
        if self._mesh is None:
            links = self._links.links if self._links is not None else {}
            cache = self._settings.folders.cache
            self._mesh, self._links = open_mesh(plan.rank, links, plan.epoch, cache), None
            self._master.check_epoch(plan.epoch)  # who ended it before that did not shut the mesh down
        return self._mesh

    def _close_links(self) -> None:
        mesh, self._mesh = self._mesh, None
        links, self._links = self._links, None
        for opened in (mesh, links):
            if opened is not None:
                opened.close()

    def _arithmetic(self) -> Arithmetic:
        return make_arithmetic(self._settings.folders.cache)

    def _provision(self, plan: Plan) -> Provision:
        def progress(how: str) -> ByteProgress:
            return lambda n_done, n_bytes: self._tell(plan.rank, n_done, n_bytes, how)

        return Provision(
            self._holdings.store,
            self._settings.folders.cache,
            lambda model, repacker: self._holdings.stock(model, repacker, self._open_source, progress),
            self._show,
        )

    def _open_source(self) -> LinkSource:
        """Slices from the master."""
        self._source = LinkSource(self._master.control)
        self._master.check()
        return self._source

    def _tell(self, rank: int, n_done: int, n_bytes: int, how: str) -> None:
        """Progress, in steps."""
        step = how, n_done * _PROGRESS_STEPS // n_bytes if n_bytes else _PROGRESS_STEPS
        if step != self._told:
            self._told = step
            self._report(Transfer(rank, self._identity.name, n_done, n_bytes, how))
            self._master.send(Progress(n_done, n_bytes, how))

    def _show(self, event: Event) -> None:
        """Here, and what is to be remarked to the master as well: nobody may look at this device."""
        self._report(event)
        if isinstance(event, Remark):
            self._master.send(Remarked(one_line(event.text)))

    # The control link's thread.

    def answer(self, message: AnyMessage) -> bool:
        """See ``masterlink.Session``."""
        match message:
            case RunChunk():
                if self._source is not None:
                    self._source.deliver(message)
            case StatusRequest():
                if self._host is not None:
                    self._master.send(StatusReply(message.number, self._host.status()))
            case ClockRequest():
                self._master.send(ClockReply(message.number, time.monotonic()))
            case TraceRequest():
                events, n_dropped = self._trace.take(TRACE_EVENTS) if self._trace is not None else (b"", 0)
                self._master.send(TraceReply(message.number, events, n_dropped))
            case Revoked():
                self._gate.revoke(int(message.serial, 16))
            case _:
                return False
        return True

    def interrupt(self, error: LinkError) -> None:
        """See ``masterlink.Session``."""
        if (mesh := self._mesh) is not None:
            mesh.shut_down(error)
        if (host := self._host) is not None:
            host.interrupt()

    def interrupt_after(self, last_pass: int, error: LinkError) -> None:
        """See ``masterlink.Session``. Links that the master closes end what waits for more."""
        if (host := self._host) is None or host.last_pass >= last_pass:
            self.interrupt(error)
            return
        self._rest = threading.Timer(_REST_LIMIT_S, self.interrupt, (error,))
        self._rest.daemon = True
        self._rest.start()

    def give_up(self, error: LinkError) -> None:
        """See ``masterlink.Session``."""
        if self._source is not None:
            self._source.fail(error)

    # The acceptor's threads.

    def _take_link(self, link: AcceptedLink) -> None:
        try:
            self._arrived.put_nowait(link)
        except queue.Full:
            link.socket.close()
