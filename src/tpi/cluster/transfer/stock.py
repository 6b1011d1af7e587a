"""Where a rank's window reads from: a shard in the device's store, made if need be, in the order of the kernels.

The same on master and workers; blocks its caller.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tpi.cluster.reports import Remark, Report
from tpi.config import Resources
from tpi.errors import KernelError, ModelFileError
from tpi.gguf.types import TYPES_BY_ID
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.probe import probe_kernels
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.rankmodel import RankModel
from tpi.weights.files import round_up
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.repacking import RepackingKernels, repacked_header, repacked_share
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_source import ShardSource
from tpi.weights.shards.shard_writer import PART_SUFFIX
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import SliceSource
from tpi.weights.stored import StoredWeights, stored_from_shard
from tpi.weights.streaming.readways import NOTE_SUFFIX

_WORTH_REPACKING = 0.25
"""The part of a rank's bytes that the kernels must take."""
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class Stock:
    """What a window reads. ``shard``: the file, if it is one that can be checked; ``is_stored_here``: it lies in the
    store, so a damaged one may be removed. ``disk_note``: see ``weights.streaming.readways``."""

    stored: StoredWeights
    shard: Shard | None = None
    is_stored_here: bool = False
    disk_note: Path | None = None


def stock_of(shard: Shard, is_stored_here: bool) -> Stock:
    """The stock that a shard file is."""
    return Stock(stored_from_shard(shard), shard, is_stored_here, shard.path.with_name(shard.path.name + NOTE_SUFFIX))


def find_stock(
    store: ShardStore,
    model: RankModel,
    repacker: RepackingKernels | None,
    open_source: Callable[[], AbstractContextManager[SliceSource]],
    progress: ByteProgress,
) -> Stock:
    """The shard in the repacker's order, or without one in the model's own: one in the store, or a new one.

    Raises:
        DiskSpaceError, ModelFileError, LinkError, ChecksumError: see ``make_shard``.
    """
    shard = store.try_find(model.spec.digest, model.pieces, repacker.name if repacker is not None else "")
    if shard is None:
        with open_source() as source:
            shard = make_shard(store, model, source, progress, repacker)
    return stock_of(shard, True)


def make_shard(
    store: ShardStore,
    model: RankModel,
    source: SliceSource,
    progress: ByteProgress,
    repacker: RepackingKernels | None = None,
) -> Shard:
    """Writes the shard, rearranged if there is a repacker, from older ones of the model and what they lack from
    ``source``; then removes the older ones. What an interrupted attempt wrote is kept.

    Raises:
        DiskSpaceError, ModelFileError, LinkError, ChecksumError: see ``weights.shards.assemble.write_shard``.
    """
    header = ShardHeader(model.spec, model.partition, model.rank)
    if repacker is not None:
        header = repacked_header(header, model.pieces, repacker)
    path = store.path_for(model.spec.digest, model.rank, model.pieces, header.repacking)
    with ExitStack() as stack:
        older = []
        for shard in store.shards(model.spec.digest):
            with suppress(ModelFileError):  # another process has removed it
                older.append(stack.enter_context(ShardSource(shard)))
        shard = write_shard(path, header, source, older, progress, repacker).shard
    store.remove_older(shard)
    return shard


def check_kernels(spec: ModelSpec, cache: Path, kv_type: str) -> None:
    """Tries the kernels that this model needs with a KV cache of ``kv_type``, once per library and CPU.

    Raises:
        KernelError: one of them crashes or computes wrong results.
    """
    probe_kernels(cache).require({tensor.type.name for tensor in spec.tensors.values()}, kv_type)


def open_repacker(
    store: ShardStore, model: RankModel, resources: Resources, cache: Path, report: Report
) -> Repacker | None:
    """As ``find_repacker``, if there is room for a copy, too. The caller closes it."""
    repacker = find_repacker(model, resources, cache)
    if repacker is None or _has_room(store, model, repacker, report):
        return repacker
    repacker.close()
    return None


def find_repacker(model: RankModel, resources: Resources, cache: Path) -> Repacker | None:
    """The kernels' own order of weights, if it is wanted, worth it for this rank, and was tried with success. The
    caller closes it."""
    if not resources.repack:
        return None
    try:
        repacker = Repacker()
    except KernelError:
        return None
    types = {TYPES_BY_ID[part.type_id].name for piece in model.pieces for part in piece.parts}
    if repacked_share(repacker, model.pieces) >= _WORTH_REPACKING and probe_kernels(cache).allows_repacked(types):
        return repacker
    repacker.close()
    return None


def _has_room(store: ShardStore, model: RankModel, repacker: Repacker, report: Report) -> bool:
    """Whether a rearranged shard is there, or must be made in any case, or fits beside what there is."""
    digest, pieces = model.spec.digest, model.pieces
    if store.try_find(digest, pieces, repacker.name) is not None:
        return True
    if model.partition.n_ranks > 1 and store.try_find(digest, pieces) is None:
        return True  # it takes what a plain one would
    needed = sum(round_up(piece.n_bytes) for piece in pieces) + _SPARE_BYTES
    free = store.free_bytes() + _begun_bytes(store.path_for(digest, model.rank, pieces, repacker.name))
    if free > needed:
        return True
    report(goes_on_without(f"the disk of {store.folder} has {free:,} bytes free, {needed:,} are needed"))
    return False


def _begun_bytes(path: Path) -> int:
    """What an earlier attempt has written of a shard."""
    try:
        return path.with_name(path.name + PART_SUFFIX).stat().st_size
    except OSError:
        return 0


def goes_on_without(why: str) -> Remark:
    """What people are told when weights stay in the model's own order."""
    return Remark(
        f"no room for a rearranged copy of the weights ({why}): computing goes on without it, more slowly; "
        "`tpi shards prune` may make room; without repacking it is not tried"
    )
