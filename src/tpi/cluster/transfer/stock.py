"""Where a rank's window reads from: a shard in the device's store, made if need be, and its rearranged copy.

The same on master and workers; blocks its caller.
"""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tpi.cluster.reports import Remark, Report
from tpi.config import Resources
from tpi.errors import DiskSpaceError, KernelError, ModelFileError
from tpi.gguf.types import TYPES_BY_ID
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.probe import probe_kernels
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.workspace import RankModel
from tpi.weights.files import round_up
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.inventory import remove_outdated
from tpi.weights.shards.packing import packed_share, write_packed
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.shard_format import blank_header, data_bytes
from tpi.weights.shards.shard_source import ShardSource
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


def make_shard(store: ShardStore, model: RankModel, source: SliceSource, progress: ByteProgress) -> Shard:
    """Writes the shard, then removes older ones of the same model; what an interrupted attempt wrote is kept.

    Raises:
        DiskSpaceError, ModelFileError, LinkError, ChecksumError: see ``weights.shards.assemble.write_shard``.
    """
    path = store.path_for(model.spec.digest, model.rank, model.pieces)
    header = blank_header(model.spec, model.partition, model.rank, model.pieces)
    with ExitStack() as stack:
        older = []
        for shard in store.shards(model.spec.digest):
            with suppress(ModelFileError):  # another process has removed it
                older.append(stack.enter_context(ShardSource(shard)))
        shard = write_shard(path, header, source, older, progress).shard
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
    if packed_share(repacker, model.pieces) >= _WORTH_REPACKING and probe_kernels(cache).allows_repacked(types):
        return repacker
    repacker.close()
    return None


def _has_room(store: ShardStore, model: RankModel, repacker: Repacker, report: Report) -> bool:
    """Whether the copy is there, or fits beside the shard, which may have to be made first."""
    digest, pieces = model.spec.digest, model.pieces
    if store.try_find(digest, pieces, repacker.name) is not None:
        return True
    n_bytes = sum(round_up(piece.n_bytes) for piece in pieces)
    is_alone = model.partition.n_ranks == 1
    needed = n_bytes if is_alone or store.try_find(digest, pieces) is not None else 2 * n_bytes
    free = store.free_bytes()
    if free > needed + _SPARE_BYTES:
        return True
    report(_goes_on(f"the disk of {store.folder} has {free:,} bytes free, {needed + _SPARE_BYTES:,} are needed"))
    return False


def try_rearranged(
    store: ShardStore,
    model: RankModel,
    repacker: Repacker,
    own: Stock,
    progress: ByteProgress,
    report: Report,
) -> Stock | None:
    """The rearranged copy, made from ``own`` if there is none; what other kernels left in its place is removed then.
    None, and a remark, where the disk has no room for it.

    Raises:
        ModelFileError: the weights cannot be read, or the copy cannot be written for another reason.
    """
    shard = store.try_find(model.spec.digest, model.pieces, repacker.name)
    if shard is None:
        path = store.path_for(model.spec.digest, model.rank, model.pieces, repacker.name)
        header = blank_header(model.spec, model.partition, model.rank, model.pieces, repacker.name)
        try:
            shard = write_packed(path, header, own.stored, repacker, progress)
        except DiskSpaceError:
            report(_goes_on(f"the disk of {store.folder} is full, {data_bytes(header):,} bytes are needed"))
            return None
        store.hold(shard)
        remove_outdated(store.folder, shard)
    return stock_of(shard, True)


def _goes_on(why: str) -> Remark:
    return Remark(
        f"no room for a rearranged copy of the weights ({why}): computing goes on without it, more slowly; "
        "`tpi shards prune` may make room, --no-repack does not try"
    )
