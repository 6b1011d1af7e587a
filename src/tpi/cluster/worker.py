"""A worker's life: join, offer, prepare what the plan says, run passes until the master ends.

The calling thread prepares and runs passes; the control link's thread hands it messages, answers questions about
status, and ends a pass under way when the master is gone.
"""

import queue
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.star import StarWorker
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import (
    AnyMessage,
    Failed,
    Goodbye,
    HeldShard,
    Offer,
    OpenData,
    Plan,
    Prepared,
    Progress,
    RunChunk,
    StatusReply,
    StatusRequest,
    one_line,
)
from tpi.cluster.epoch.host import RankHost, host_of, rank_model
from tpi.cluster.epoch.plancheck import check_plan
from tpi.cluster.epoch.speeds import measure_speeds
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.datapath import WorkerDatapath
from tpi.cluster.pairing.connect import OpenedLink, find_or_join, open_control, open_data
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.cluster.reports import Loading, Ready, Report, Transfer
from tpi.cluster.transfer.slices import LinkSource
from tpi.cluster.transfer.stock import Stock, check_kernels, make_shard, open_repacker, rearranged, stock_of
from tpi.config import Resources, WorkerSettings
from tpi.errors import LinkError, ModelFileError, PairingError, TpiError
from tpi.gguf.reader import read_gguf
from tpi.observe import available_memory_bytes
from tpi.runtime.workspace import RankModel
from tpi.weights.identity import model_digest
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource

_PROGRESS_STEPS = 50
_Message = TypeVar("_Message", bound=AnyMessage)


def run_worker(settings: WorkerSettings, report: Report) -> None:
    """Joins the cluster of ``settings.key`` and works in it; returns when the master ends the session.

    Raises:
        TpiError: whatever goes wrong, here or at the master; one line.
    """
    key = JoinKey.decode(settings.key)
    if settings.master is not None:
        key = JoinKey((Address.parse(settings.master),), key.fingerprint, key.secret)
    held = _HeldShards(settings)
    opened, identity = _open_control(key, settings)
    with _Worker(settings, held, opened, identity, report) as worker:
        worker.run()


def _open_control(key: JoinKey, settings: WorkerSettings) -> tuple[OpenedLink, Identity]:
    """Opens the control link; a device that was removed and got a new key joins anew."""
    store = IdentityStore(settings.folders.state / "identities")
    known = store.find(key.fingerprint)
    identity = find_or_join(key, settings.name, store)
    try:
        return open_control(key.addresses, identity), identity
    except PairingError:
        if known is None:
            raise
    store.forget(key.fingerprint)
    identity = find_or_join(key, settings.name, store)
    return open_control(key.addresses, identity), identity


class _HeldShards:
    """The shards on this device: the one that the user names, or those in the store."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.store = ShardStore(settings.folders.shards / settings.name)
        self.given = open_shard(settings.shard) if settings.shard else None

    def offer(self, resources: Resources, cache: Path) -> Offer:
        """With what this device can do, measured now."""
        shards = [self.given] if self.given else self.store.shards()
        held = [HeldShard(shard.header.spec.digest, shard.header.rank) for shard in shards[:64]]
        folder = self.given.path.parent if self.given else self.store.folder
        speeds = measure_speeds(shards[0].pieces if shards else (), resources, cache, folder)
        return Offer(
            memory_bytes=resources.memory_bytes or max(1, available_memory_bytes() // 2),
            held=held,
            locked=self.given.header.partition if self.given else None,
            window_bytes=resources.window_bytes,
            flop_per_s=speeds.flop_per_s,
            disk_bytes_per_s=speeds.disk_bytes_per_s,
        )


class _Worker:
    """One session. A context manager that ends links and threads."""

    def __init__(
        self, settings: WorkerSettings, held: _HeldShards, opened: OpenedLink, identity: Identity, report: Report
    ) -> None:
        self._settings, self._held, self._opened, self._identity = settings, held, opened, identity
        self._report = report
        self._inbox: queue.SimpleQueue[AnyMessage | LinkError] = queue.SimpleQueue()
        self._host: RankHost | None = None
        self._data: DataLink | None = None
        self._lost: LinkError | None = None
        self._goodbye: str | None = None
        self._stack = ExitStack()
        self._source: LinkSource | None = None
        self._control = self._stack.enter_context(
            ControlLink(opened.socket, f"the master {opened.master}", None, self._on_message, self._on_lost)
        )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self) -> None:
        """The whole session."""
        try:
            self._work()
        except TpiError as error:
            if self._goodbye is not None:
                if self._goodbye:
                    raise LinkError(self._goodbye) from None
                return
            if self._lost is not None:
                raise self._lost from None
            self._try_say(Failed(one_line(str(error))))
            raise

    def _work(self) -> None:
        self._control.send(self._held.offer(self._settings.resources, self._settings.folders.cache))
        plan = self._wait_for(Plan)
        check_plan(plan)
        model = rank_model(plan)
        resources, folders, store = self._settings.resources, self._settings.folders, self._held.store
        check_kernels(plan.spec, folders.cache)
        repacker = open_repacker(store, model, resources, folders.cache, self._report)
        with host_of(plan, model, self._identity.name, resources, None, repacker) as host:
            stock = self._own_stock(model)
            if repacker is not None:
                stock = rearranged(store, model, repacker, stock, self._progress(plan.rank, "rearranged"))
            self._report(Loading(plan.rank, self._identity.name))
            host.load(stock)
            self._host = host
            self._control.send(Prepared())
            with self._open_data(self._wait_for(OpenData)) as link:
                datapath = WorkerDatapath(link, plan.spec, plan.max_tokens, plan.n_cells, plan.max_sampled)
                allreduce = StarWorker(plan.rank, link, PayloadFormat(plan.payload), plan.max_tokens * plan.spec.n_embd)
                host.connect(allreduce, lambda: (link.n_bytes_sent, link.n_bytes_received))
                self._report(Ready(plan.partition.n_ranks))
                while True:
                    work = datapath.receive()
                    datapath.send_logits(work, host.run(work))

    def _open_data(self, message: OpenData) -> DataLink:
        opened = open_data(self._opened.address, self._identity, message.epoch, message.token)
        self._data = DataLink(opened.socket, f"the master {opened.master}", epoch=message.epoch, timeout_s=None)
        if self._lost or self._goodbye is not None:
            self._data.shut_down()
        return self._data

    def _wait_for(self, kind: type[_Message]) -> _Message:
        message = self._inbox.get()
        if isinstance(message, kind):
            return message
        if isinstance(message, LinkError):
            raise message
        raise LinkError(f"the master sent {type(message).__name__} instead of {kind.__name__}")

    def _own_stock(self, model: RankModel) -> Stock:
        """The shard that the plan asks for: the one given, one in the store, or a new one."""
        given = self._held.given
        if given is not None:
            if given.header.spec.digest != model.spec.digest or given.pieces != model.pieces:
                raise ModelFileError(
                    f"{given.path} is not rank {model.rank}'s shard of the model that is served: cut it again with "
                    "`tpi shard` from the same file, with the same shares"
                )
            return stock_of(given, False)
        found = self._held.store.try_find(model.spec.digest, model.pieces)
        return stock_of(found or self._assemble(model), True)

    def _assemble(self, model: RankModel) -> Shard:
        store = self._held.store
        path = self._settings.model
        if path is None:
            self._source = LinkSource(self._control)
            return make_shard(store, model, self._source, self._progress(model.rank, "received"))
        gguf = read_gguf(path)
        if model_digest(gguf) != model.spec.digest:
            raise ModelFileError(f"{path} is not the model that the master serves")
        with GgufSource(gguf) as source:
            return make_shard(store, model, source, self._progress(model.rank, "cut"))

    def _progress(self, rank: int, how: str) -> Callable[[int, int], None]:
        told = -1

        def tell(n_done: int, n_bytes: int) -> None:
            nonlocal told
            step = n_done * _PROGRESS_STEPS // n_bytes if n_bytes else _PROGRESS_STEPS
            if step != told:
                told = step
                self._report(Transfer(rank, self._identity.name, n_done, n_bytes, how))
                self._control.send(Progress(n_done, n_bytes, how))

        return tell

    # The control link's thread.

    def _on_message(self, message: AnyMessage) -> None:
        match message:
            case RunChunk():
                if self._source is not None:
                    self._source.deliver(message)
            case StatusRequest():
                if self._host is not None:
                    self._control.send(StatusReply(message.number, self._host.status()))
            case Goodbye():
                self._goodbye = one_line(message.reason)
                self._stop(LinkError(self._goodbye or "the master has ended the session"))
            case _:
                self._inbox.put(message)

    def _on_lost(self, error: LinkError) -> None:
        self._lost = error
        self._stop(error)

    def _stop(self, error: LinkError) -> None:
        """Ends whatever the other thread waits for."""
        self._inbox.put(error)
        if self._source is not None:
            self._source.fail(error)
        if self._data is not None:
            self._data.shut_down()

    def _try_say(self, message: Failed) -> None:
        try:
            self._control.send(message)
        except LinkError:
            return
