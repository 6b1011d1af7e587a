"""A rank gets ready for a plan: what it holds already stays, the rest is made. The same on master and workers.

Blocks its caller, sometimes for as long as a shard takes to arrive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice, RankHost, host_of, rank_model, rank_settings
from tpi.cluster.reports import Loading, Report
from tpi.cluster.transfer.stock import Stock, check_kernels, open_repacker, try_rearranged
from tpi.runtime.workspace import RankModel
from tpi.weights.shards.shard import ByteProgress
from tpi.weights.shards.store import ShardStore
from tpi.weights.stored import StoredWeights


@dataclass(frozen=True)
class Provision:
    """Where a rank's weights come from: ``stock`` finds or makes what its window reads, ``progress`` is told how far a
    copy is that is being made, under a word for how. ``whole``: the model's own files serve as they are."""

    store: ShardStore
    cache: Path
    stock: Callable[[RankModel], Stock]
    progress: Callable[[str], ByteProgress]
    report: Report
    whole: StoredWeights | None = None


def prepare_host(plan: Plan, device: HostDevice, provision: Provision, before: RankHost | None) -> RankHost:
    """The host of the plan's rank; ``before``, the one of the epoch before, is that host or is closed.

    Raises:
        MemoryBudgetError: the device allows less memory than its part needs.
        KernelError: the kernels cannot compute this model.
        DiskSpaceError, ModelFileError, LinkError, ChecksumError: its weights cannot be brought here. Without room for
            a rearranged copy it goes on without one, and reports that.
    """
    model = rank_model(plan)
    if before is not None and before.suits(model, rank_settings(plan, device.resources.n_threads)):
        before.adopt(model)
        return before
    check_kernels(plan.spec, provision.cache, plan.kv_type)
    repacker = open_repacker(provision.store, model, device.resources, provision.cache, provision.report)
    packing = repacker.name if repacker is not None else ""
    legacy = before.bequeath(model, packing) if before is not None else None
    host: RankHost | None = None
    try:
        host = host_of(plan, model, device, provision.whole, repacker)
        stock = provision.stock(model)
        if repacker is not None:
            progress = provision.progress("rearranged")
            copy = try_rearranged(provision.store, model, repacker, stock, progress, provision.report)
            if copy is None:  # the host, and what was bequeathed, were for the other order
                host.close()
                if legacy is not None:
                    legacy.close()
                host, legacy = host_of(plan, model, device, provision.whole), None
            stock = copy or stock
        provision.report(Loading(plan.rank, device.name))
        host.load(stock, legacy)
    except BaseException:
        if host is not None:
            host.close()
        if legacy is not None:
            legacy.close()
        raise
    return host
