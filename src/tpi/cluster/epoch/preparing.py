"""A rank gets ready for a plan: what it holds already stays, the rest is made. The same on master and workers.

Blocks its caller, sometimes for as long as a shard takes to arrive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice, RankHost, host_of
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.reports import Loading, Report
from tpi.cluster.transfer.stock import Stock, check_kernels, goes_on_without, open_repacker
from tpi.errors import DiskSpaceError, ProtocolError
from tpi.runtime.rankmodel import RankModel
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.store import ShardStore
from tpi.weights.stored import StoredWeights


@dataclass(frozen=True)
class Provision:
    """Where a rank's weights come from: ``stock`` finds or makes what its window reads, in the repacker's order if
    there is one. ``whole``: the model's own files serve as they are."""

    store: ShardStore
    cache: Path
    stock: Callable[[RankModel, RepackingKernels | None], Stock]
    report: Report
    whole: StoredWeights | None = None


def prepare_host(plan: Plan, device: HostDevice, provision: Provision, before: RankHost | None) -> RankHost:
    """The host of the plan's rank; ``before``, the one of the epoch before, is that host or is closed.

    Raises:
        MemoryBudgetError: the device allows less memory than its part needs.
        KernelError: the kernels cannot compute this model.
        ProtocolError: the plan goes on where nothing is.
        DiskSpaceError, ModelFileError, LinkError, ChecksumError: its weights cannot be brought here. Without room for
            them in the order of the kernels it goes on without that, if it can, and reports it.
    """
    model = rank_model(plan)
    if before is not None and before.suits(model, rank_settings(plan, device.resources.n_threads)):
        before.adopt(model, plan.last_pass)
        return before
    if plan.last_pass is not None:
        raise ProtocolError("the plan goes on with what was computed, which is not here")
    check_kernels(plan.spec, provision.cache, plan.kv_type)
    repacker = open_repacker(provision.store, model, device.resources, provision.cache, provision.report)
    repacking = repacker.name if repacker is not None else ""
    legacy = before.bequeath(model, repacking) if before is not None else None
    host: RankHost | None = None
    try:
        host = host_of(plan, model, device, provision.whole, repacker)
        try:
            stock = provision.stock(model, repacker)
        except DiskSpaceError:
            if repacker is None:
                raise
            host.close()  # it, and what was bequeathed, were for the other order
            if legacy is not None:
                legacy.close()
            host, legacy = host_of(plan, model, device, provision.whole), None
            stock = provision.stock(model, None)
            provision.report(goes_on_without(f"the disk of {provision.store.folder} is full"))
        provision.report(Loading(plan.rank, device.name))
        host.load(stock, legacy)
    except BaseException:
        if host is not None:
            host.close()
        if legacy is not None:
            legacy.close()
        raise
    return host
