"""Makes the plan of an epoch from those who are here. Pure arithmetic, but for counting what a rank's parts take.

Whatever depends on the settings and the model alone is checked before anybody has to join.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from tpi.cluster.allreduce.algorithms import ALL_ALGORITHMS
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import Offer, Plan
from tpi.cluster.epoch.cells import most_cells, most_possible, n_cells_of
from tpi.cluster.epoch.choosing import TRIED
from tpi.cluster.epoch.footprint import (
    DESCRIPTION_BYTES,
    WORKER_PROCESS_BYTES,
    Claim,
    are_cheap,
    chunk_tokens,
    pass_load,
)
from tpi.cluster.epoch.host import piece_bytes_of
from tpi.cluster.epoch.plancheck import check_kv_type, check_payload
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.epoch.speeds import measure_speeds
from tpi.cluster.mesh.frames import check_capacity
from tpi.cluster.mesh.passframes import pass_capacity
from tpi.config import AUTO, DEFAULT_CHUNK_TOKENS, MAX_PARALLEL, MasterSettings
from tpi.errors import KernelError, MemoryBudgetError, ProtocolError, UsageError
from tpi.model.architectures import blocks_of, inputs_of
from tpi.model.blocks import has_recurrent_state
from tpi.model.layout import Layout, divide_layers, parse_layout
from tpi.model.partition import Partition, divide, is_whole
from tpi.model.spec import ModelSpec
from tpi.observe import available_memory_bytes
from tpi.planner.chunks import Speeds, covering_tokens, possible_tokens
from tpi.planner.shares import check_shares, shares_by_memory
from tpi.runtime.retention import lies_in_cells

FIRST_EPOCH = 1
MAX_SAMPLED = 8
"""Rows of one pass whose logits the engine may want."""
KEPT_STATES = 2
"""Recurrent states that a sequence keeps to go back to: after what all conversations begin with, and after the latest
prompt."""


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a device: its name, and for workers what they offer."""

    name: str
    offer: Offer | None = None


def check_settings(settings: MasterSettings, spec: ModelSpec) -> None:
    """Refuses what no devices could make possible.

    Raises:
        UsageError: the context, the KV cache's type, the payload, the shares or the layout do not fit the model or each
            other.
    """
    _base_plan(settings, spec)
    if settings.shares is not None and settings.layout is not None:
        raise UsageError("shares and a layout exclude each other: a layout says who holds what")
    if settings.shares is not None:
        check_shares(settings.shares, settings.n_workers + 1)
    if settings.layout is not None:
        parse_layout(settings.layout, spec.n_layers)
    if settings.allreduce is not None and settings.allreduce not in ALL_ALGORITHMS:
        raise UsageError(f"there is no allreduce {settings.allreduce!r}: there are {', '.join(ALL_ALGORITHMS)}")
    if settings.is_reproducible and settings.allreduce not in (None, *TRIED):
        raise UsageError(
            f"{settings.allreduce} cannot be reproducible: it adds up in an order that depends on how much it is: take "
            f"{', '.join(TRIED)}"
        )
    try:
        check_payload(settings.wire, spec)
    except ValueError as error:
        raise UsageError(f"not possible: {error}") from error


def make_plan(
    settings: MasterSettings, spec: ModelSpec, epoch: int, devices: Sequence[Device], process_bytes: int
) -> Plan:
    """The plan of the master, rank 0; ``devices`` by rank. ``process_bytes`` is what its process has before it holds
    anything.

    Raises:
        UsageError: shares, layout and the shards that workers insist on do not go together.
    """
    plan = _base_plan(settings, spec)
    plan = msgspec.structs.replace(plan, epoch=epoch, partition=_partition(settings, spec, devices))
    if settings.context == AUTO:
        plan = _with_most_cells(plan, settings, devices, process_bytes)
    n_tokens = _chunk_tokens(plan, settings, devices, process_bytes)
    return msgspec.structs.replace(plan, max_tokens=n_tokens)


def with_rank(plan: Plan, rank: int) -> Plan:
    """The same plan as another rank gets it."""
    return msgspec.structs.replace(plan, rank=rank)


def kv_type_of(name: str, spec: ModelSpec) -> str:
    """The KV cache's type, if this model can have it.

    Raises:
        UsageError: it cannot.
    """
    try:
        check_kv_type(name, spec)
    except ValueError as error:
        raise UsageError(f"not possible: {error}") from error
    return name


def check_offer(settings: MasterSettings, spec: ModelSpec, offer: Offer, others: Sequence[Offer]) -> None:
    """Whether a worker's shard, if it insists on one, can be used, given the shards of those who came before.

    Raises:
        UsageError: it cannot.
    """
    if offer.locked is None:
        return
    n_ranks = settings.n_workers + 1
    held = offer.held[0] if offer.held else None
    if held is None or held.model_digest != spec.digest or not 1 <= held.rank < n_ranks:
        raise UsageError(
            f"the shard that it brings cannot be used: it must be one of ranks 1 to {n_ranks - 1} of the model that is "
            "served"
        )
    locked = [other for other in others if other.locked is not None]
    if any(other.held[0].rank == held.rank for other in locked):
        raise UsageError(f"another device has brought the shard of rank {held.rank} already")
    blocks = blocks_of(spec)
    wanted = _settled_partition(settings, spec, n_ranks) or (locked[0].locked if locked else offer.locked)
    if offer.locked.n_ranks != n_ranks or not is_whole(blocks, offer.locked) or offer.locked != wanted:
        raise UsageError(
            f"the shard that it brings was cut for other shares or another number of devices than {n_ranks}: cut it "
            "again with `tpi shard`, or start without it"
        )


def assign_ranks(offers: Sequence[tuple[str, Offer]], spec: ModelSpec) -> list[int]:
    """Ranks 1 to N-1 for the named offers, in their order: a worker keeps the rank whose shard it has, if that is free,
    those that insist on it first; the others follow by name."""
    free = set(range(1, len(offers) + 1))
    ranks: dict[str, int] = {}
    for name, offer in sorted(offers, key=lambda entry: entry[1].locked is None):
        held = (shard.rank for shard in offer.held if shard.model_digest == spec.digest)
        rank = next((rank for rank in held if rank in free), 0)
        if rank:
            ranks[name] = rank
            free.discard(rank)
    waiting = sorted(name for name, _ in offers if name not in ranks)
    ranks.update(zip(waiting, sorted(free), strict=True))
    return [ranks[name] for name, _ in offers]


def _base_plan(settings: MasterSettings, spec: ModelSpec) -> Plan:
    """What does not depend on the devices."""
    n_cells = n_cells_of(settings.context, spec, settings.n_parallel)
    max_tokens, width = settings.chunk_tokens or DEFAULT_CHUNK_TOKENS, _embedding_width(spec)
    if settings.context == AUTO:
        n_cells = most_possible(n_cells, lambda n: _fits_a_frame(min(max_tokens, n), n, width))
    plan = Plan(
        epoch=FIRST_EPOCH,
        rank=0,
        spec=spec,
        partition=Partition(0, ()),
        n_cells=n_cells,
        max_tokens=min(max_tokens, n_cells),
        max_sampled=max(MAX_SAMPLED, settings.n_parallel),
        n_sequences=_n_sequences(settings, spec),
        is_traced=settings.trace is not None,
        kv_type=kv_type_of(settings.kv_type, spec),
        payload=PayloadFormat.F32.value if settings.is_reproducible else settings.wire,
        n_parts=2 if settings.n_workers and not settings.is_reproducible else 1,
        is_reproducible=settings.is_reproducible,
        n_kept_states=KEPT_STATES if has_recurrent_state(blocks_of(spec)) else 0,
    )
    try:
        check_capacity(pass_capacity(plan.max_tokens, n_cells, width))
    except ProtocolError as error:
        raise UsageError(f"a context of {n_cells} is too long: {error}") from error
    return plan


def _n_sequences(settings: MasterSettings, spec: ModelSpec) -> int:
    """Those that are answered, and what is pinned, where that is more than cells."""
    n_sequences = settings.n_parallel + (settings.pins and not lies_in_cells(blocks_of(spec)))
    if n_sequences > MAX_PARALLEL:
        raise UsageError(f"{settings.n_parallel} sequences and what is pinned are too many: at most {MAX_PARALLEL - 1}")
    return n_sequences


def _settled_partition(settings: MasterSettings, spec: ModelSpec, n_ranks: int) -> Partition | None:
    """The partition that the settings demand, whoever joins, if they do."""
    if settings.shares is not None:
        return divide(blocks_of(spec), settings.shares)
    return None


def _partition(settings: MasterSettings, spec: ModelSpec, devices: Sequence[Device]) -> Partition:
    """From the layout, from the shards that workers insist on, from shares, or by memory, in this order."""
    offers = [device.offer for device in devices if device.offer is not None]
    own = settings.resources.memory_bytes or available_memory_bytes() // 2
    by_memory = shares_by_memory([own, *(offer.memory_bytes for offer in offers)])
    locked = next((offer.locked for offer in offers if offer.locked is not None), None)
    if settings.layout is not None:
        layout: Layout = parse_layout(settings.layout, spec.n_layers)
        partition = divide_layers(blocks_of(spec), layout, [device.name for device in devices], by_memory)
        if locked not in (None, partition):
            raise UsageError("the workers' shards were cut for another layout: start them without these")
        return partition
    return _settled_partition(settings, spec, len(devices)) or locked or divide(blocks_of(spec), by_memory)


def _with_most_cells(plan: Plan, settings: MasterSettings, devices: Sequence[Device], process_bytes: int) -> Plan:
    """With as many cells as every rank has memory for; this one half of what is free, where nobody has said more."""
    own = settings.resources
    if own.memory_bytes is None:
        own = replace(own, memory_bytes=available_memory_bytes() // 2)
    claims = _claims(plan, replace(settings, resources=own), devices, process_bytes)
    usual = n_cells_of(None, plan.spec)
    n_cells = most_cells(list(claims.values()), rank_settings(plan, own.n_threads), usual)
    return msgspec.structs.replace(plan, n_cells=n_cells, max_tokens=min(plan.max_tokens, n_cells))


def _chunk_tokens(plan: Plan, settings: MasterSettings, devices: Sequence[Device], process_bytes: int) -> int:
    """How many tokens a pass may have, so that no rank runs short of memory for weights, and disks keep up if the
    settings leave that open. What this device has no addresses to count stays as it is."""
    try:
        return _count_chunk_tokens(plan, settings, devices, process_bytes)
    except (KernelError, MemoryBudgetError):
        return plan.max_tokens


def _count_chunk_tokens(plan: Plan, settings: MasterSettings, devices: Sequence[Device], process_bytes: int) -> int:
    claims = _claims(plan, settings, devices, process_bytes)
    usual = rank_settings(plan, settings.resources.n_threads)
    n_tokens = chunk_tokens(claims.values(), usual)
    if settings.chunk_tokens is not None or n_tokens < plan.max_tokens:
        return n_tokens
    loads = {rank: pass_load(claim, usual) for rank, claim in claims.items()}
    if not any(load.streamed_bytes for load in loads.values()):
        return n_tokens
    speeds = {
        rank: Speeds(device.offer.flop_per_s, device.offer.disk_bytes_per_s)
        for rank, device in enumerate(devices)
        if device.offer is not None
    }
    if 0 in claims:
        folder = settings.folders.shards / settings.name
        speeds[0] = measure_speeds(claims[0].model.pieces, settings.resources, settings.folders.cache, folder)
    width = _embedding_width(plan.spec)
    lengths = [
        n for n in possible_tokens(n_tokens, plan.n_cells) if n == n_tokens or _fits_a_frame(n, plan.n_cells, width)
    ]
    wanted = covering_tokens(list(loads.values()), [speeds[rank] for rank in loads], lengths)
    return max(n for n in lengths if n == n_tokens or (n <= wanted and are_cheap(claims.values(), usual, n)))


def _embedding_width(spec: ModelSpec) -> int:
    return spec.n_embd + inputs_of(spec).n_looked_up


def _fits_a_frame(n_tokens: int, n_cells: int, width: int) -> bool:
    try:
        check_capacity(pass_capacity(n_tokens, n_cells, width))
    except ProtocolError:
        return False
    return True


def _claims(plan: Plan, settings: MasterSettings, devices: Sequence[Device], process_bytes: int) -> dict[int, Claim]:
    """What the ranks whose memory is limited make of it."""
    own, claims = settings.resources, {}
    limits = {0: (own.memory_bytes, own.window_bytes, process_bytes)}
    for rank, device in enumerate(devices):
        if (offer := device.offer) is not None:
            base_bytes = max(WORKER_PROCESS_BYTES, offer.process_bytes + DESCRIPTION_BYTES)
            limits[rank] = offer.memory_bytes, offer.window_bytes, base_bytes
    for rank, (memory_bytes, window_bytes, base_bytes) in limits.items():
        if memory_bytes is not None:
            model = rank_model(with_rank(plan, rank))
            claims[rank] = Claim(model, piece_bytes_of(model, None), base_bytes, memory_bytes, window_bytes)
    return claims
