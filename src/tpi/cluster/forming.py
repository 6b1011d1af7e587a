"""Makes a plan of those who joined, and gets every rank ready. Runs in the thread that forms the cluster."""

import time
from collections.abc import Callable, Sequence

import msgspec

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import MAX_CELLS, AnyMessage, Plan, Prepared, Progress, one_line
from tpi.cluster.epoch.footprint import WORKER_PROCESS_BYTES, Claim, are_cheap, chunk_tokens, pass_load
from tpi.cluster.epoch.host import RankHost, host_of, piece_bytes_of, rank_model, rank_settings
from tpi.cluster.epoch.plancheck import check_kv_type
from tpi.cluster.epoch.speeds import measure_speeds
from tpi.cluster.membership.member import Member
from tpi.cluster.reports import Loading, Report, Transfer
from tpi.cluster.transfer.stock import Stock, make_shard, open_repacker, rearranged, stock_of
from tpi.config import DEFAULT_CHUNK_TOKENS, DEFAULT_CONTEXT, MasterSettings
from tpi.errors import KernelError, MemoryBudgetError, ProtocolError, UsageError
from tpi.gguf.reader import Gguf
from tpi.model.architectures import blocks_of
from tpi.model.partition import Partition, divide, is_whole
from tpi.model.spec import ModelSpec
from tpi.observe import available_memory_bytes, resident_bytes
from tpi.planner.chunks import Speeds, covering_tokens, possible_tokens
from tpi.planner.shares import check_shares, shares_by_memory
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource
from tpi.weights.stored import StoredWeights, stored_from_gguf

FIRST_EPOCH = 1
MAX_SAMPLED = 8
"""Rows of one pass whose logits the engine may want."""
_CELLS_STEP = 32
_POLL_S = 0.2


class Forming:
    """The plan, and who has done what of it."""

    def __init__(
        self, settings: MasterSettings, gguf: Gguf, spec: ModelSpec, members: Sequence[Member], report: Report
    ) -> None:
        """Raises:
        UsageError: shares, context and the shards that workers insist on do not go together.
        """
        self._settings, self._gguf, self._members, self._report = settings, gguf, members, report
        self._prepared: set[int] = set()
        _assign_ranks(members, spec)
        n_cells = n_cells_of(settings.context, spec)
        self.plan = Plan(
            epoch=FIRST_EPOCH,
            rank=0,
            spec=spec,
            partition=_partition(settings, spec, members),
            n_cells=n_cells,
            max_tokens=min(settings.chunk_tokens or DEFAULT_CHUNK_TOKENS, n_cells),
            max_sampled=MAX_SAMPLED,
            kv_type=kv_type_of(settings.kv_type, spec),
            payload=(PayloadFormat.F32 if settings.f32_payload else PayloadFormat.F16).value,
        )
        self.plan = msgspec.structs.replace(self.plan, max_tokens=_chunk_tokens(self.plan, settings, members))
        self._model = rank_model(self.plan)
        self._whole = stored_from_gguf(gguf, self._model.pieces) if not members else None
        self._store = ShardStore(settings.folders.shards / settings.name)
        self._repacker: Repacker | None = None

    def make_host(self) -> RankHost:
        """The master's own rank.

        Raises:
            MemoryBudgetError: this device allows less memory than its share needs.
        """
        settings = self._settings
        self._repacker = open_repacker(
            self._store, self._model, settings.resources, settings.folders.cache, self._report
        )
        return host_of(self.plan, self._model, settings.name, settings.resources, self._whole, self._repacker)

    def prepare(self, host: RankHost, poll: Callable[[float], None]) -> None:
        """Sends the plans, makes the master's own shard, waits until every rank is ready. ``poll`` is called often,
        with the seconds that it may wait for news.

        Raises:
            LinkError: a worker is gone or cannot go on.
            DiskSpaceError, ModelFileError: the master's shard cannot be made.
        """
        for member in self._members:
            member.send_plan(_with_rank(self.plan, member.rank), self._gguf)
        stock = self._whole_stock(self._whole) if self._whole else stock_of(self._own_shard(poll), True)
        if self._repacker is not None:
            progress = self._progress("rearranged", poll)
            stock = rearranged(self._store, self._model, self._repacker, stock, progress)
        self._report(Loading(0, self._settings.name))
        host.load(stock)
        while len(self._prepared) < len(self._members):
            poll(_POLL_S)

    def take(self, member: Member, message: AnyMessage) -> None:
        """A worker's news.

        Raises:
            ProtocolError: something that does not belong here.
        """
        match message:
            case Progress():
                self._report(Transfer(member.rank, member.name, message.n_done, message.n_bytes, one_line(message.how)))
            case Prepared():
                self._prepared.add(member.rank)
                self._report(Loading(member.rank, member.name))
            case _:
                raise ProtocolError(f"{member.name} sent {type(message).__name__} while the cluster was being formed")

    def _whole_stock(self, whole: StoredWeights) -> Stock:
        return Stock(whole, disk_note=self._store.disk_note(self._model.spec.digest))

    def _own_shard(self, poll: Callable[[float], None]) -> Shard:
        shard = self._store.try_find(self._model.spec.digest, self._model.pieces)
        if shard is None:
            with GgufSource(self._gguf) as source:
                shard = make_shard(self._store, self._model, source, self._progress("cut", poll))
        return shard

    def _progress(self, how: str, poll: Callable[[float], None]) -> ByteProgress:
        last_s = 0.0

        def tell(n_done: int, n_bytes: int) -> None:
            nonlocal last_s
            if time.monotonic() - last_s > _POLL_S or n_done == n_bytes:
                last_s = time.monotonic()
                self._report(Transfer(0, self._settings.name, n_done, n_bytes, how))
                poll(0)

        return tell


def _chunk_tokens(plan: Plan, settings: MasterSettings, members: Sequence[Member]) -> int:
    """How many tokens a pass may have, so that no rank runs short of memory for weights, and disks keep up if the
    settings leave that open. What this device has no addresses to count stays as it is."""
    try:
        return _count_chunk_tokens(plan, settings, members)
    except (KernelError, MemoryBudgetError):
        return plan.max_tokens


def _count_chunk_tokens(plan: Plan, settings: MasterSettings, members: Sequence[Member]) -> int:
    claims = _claims(plan, settings, members)
    usual = rank_settings(plan, settings.resources.n_threads)
    n_tokens = chunk_tokens(claims.values(), usual)
    if settings.chunk_tokens is not None or n_tokens < plan.max_tokens:
        return n_tokens
    loads = {rank: pass_load(claim, usual) for rank, claim in claims.items()}
    if not any(load.streamed_bytes for load in loads.values()):
        return n_tokens
    speeds = {
        member.rank: Speeds(member.offer.flop_per_s, member.offer.disk_bytes_per_s)
        for member in members
        if member.offer is not None
    }
    if 0 in claims:
        folder = settings.folders.shards / settings.name
        speeds[0] = measure_speeds(claims[0].model.pieces, settings.resources, settings.folders.cache, folder)
    lengths = possible_tokens(n_tokens, plan.n_cells)
    wanted = covering_tokens(list(loads.values()), [speeds[rank] for rank in loads], lengths)
    return max(n for n in lengths if n == n_tokens or (n <= wanted and are_cheap(claims.values(), usual, n)))


def _claims(plan: Plan, settings: MasterSettings, members: Sequence[Member]) -> dict[int, Claim]:
    """What the ranks whose memory is limited make of it."""
    own, claims = settings.resources, {}
    limits = {0: (own.memory_bytes, own.window_bytes)}
    for member in members:
        if member.offer is not None:
            limits[member.rank] = member.offer.memory_bytes, member.offer.window_bytes
    for rank, (memory_bytes, window_bytes) in limits.items():
        if memory_bytes is not None:
            model = rank_model(_with_rank(plan, rank))
            process_bytes = WORKER_PROCESS_BYTES if rank else resident_bytes()
            claims[rank] = Claim(model, piece_bytes_of(model, None), process_bytes, memory_bytes, window_bytes)
    return claims


def _with_rank(plan: Plan, rank: int) -> Plan:
    return msgspec.structs.replace(plan, rank=rank)


def kv_type_of(name: str, spec: ModelSpec) -> str:
    """The KV cache's type, if this model can have it.

    Raises:
        UsageError: it cannot.
    """
    try:
        check_kv_type(name, spec)
    except ValueError as error:
        raise UsageError(f"--kv-type: {error}") from error
    return name


def n_cells_of(context: int | None, spec: ModelSpec) -> int:
    """Cells for a context of so many tokens, None meaning the default.

    Raises:
        UsageError: the model was not trained for so many.
    """
    wanted = min(DEFAULT_CONTEXT, spec.n_context_train) if context is None else context
    limit = min(spec.n_context_train, MAX_CELLS)
    if not 1 <= wanted <= limit:
        raise UsageError(f"--context {wanted}: {spec.name} was trained for 1 to {limit} tokens")
    return -(-wanted // _CELLS_STEP) * _CELLS_STEP


def _assign_ranks(members: Sequence[Member], spec: ModelSpec) -> None:
    """Ranks 1 to N-1: a worker keeps the rank whose shard it has, if that is free; the others follow by name."""
    free = set(range(1, len(members) + 1))
    waiting = []
    for member in sorted(members, key=lambda member: not _is_locked(member)):
        assert member.offer is not None
        held = [shard.rank for shard in member.offer.held if shard.model_digest == spec.digest]
        rank = next((rank for rank in held if rank in free), 0)
        if _is_locked(member) and (not held or rank == 0):
            raise UsageError(
                f"{member.name} brings a shard that cannot be used: it must be one of ranks 1 to {len(members)} of the "
                "model that is served, each rank once"
            )
        if rank:
            member.rank = rank
            free.discard(rank)
        else:
            waiting.append(member)
    waiting.sort(key=lambda member: member.name)
    for member, rank in zip(waiting, sorted(free), strict=True):
        member.rank = rank


def _is_locked(member: Member) -> bool:
    return member.offer is not None and member.offer.locked is not None


def _partition(settings: MasterSettings, spec: ModelSpec, members: Sequence[Member]) -> Partition:
    """From the shards that workers insist on, from --shares, or by memory, in this order."""
    offers = [member.offer for member in sorted(members, key=lambda member: member.rank) if member.offer is not None]
    shares = settings.shares
    if shares is not None:
        check_shares(shares, len(members) + 1)
    locked = [offer.locked for offer in offers if offer.locked is not None]
    if locked:
        wanted = locked[0] if shares is None else divide(spec, blocks_of(spec), shares)
        fits = wanted.n_ranks == len(members) + 1 and is_whole(spec, blocks_of(spec), wanted)
        if not fits or any(partition != wanted for partition in locked):
            raise UsageError(
                f"the workers' shards were cut for other shares or another number of devices than {len(members) + 1}: "
                "cut them again with `tpi shard`, or start without --shard"
            )
        return wanted
    if shares is None:
        own = settings.resources.memory_bytes or available_memory_bytes() // 2
        shares = shares_by_memory([own, *(offer.memory_bytes for offer in offers)])
    return divide(spec, blocks_of(spec), shares)
