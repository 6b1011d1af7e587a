"""A rank gets ready only for what its kernels compute."""

import json
from pathlib import Path

import pytest

from tests.unit.runtime.rigs import make_model
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice
from tpi.cluster.epoch.preparing import Provision, prepare_host
from tpi.cluster.transfer.stock import Stock
from tpi.config import Resources
from tpi.errors import KernelError
from tpi.runtime.ggml.probe import CACHED, kernels_key
from tpi.runtime.rankmodel import RankModel
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.store import ShardStore


class Asked(Exception):
    """The kernels were found to be right, so that the weights are asked for."""


def ask(model: RankModel, repacker: RepackingKernels | None) -> Stock:
    raise Asked


@pytest.mark.parametrize(("kv_type", "error"), [("F16", Asked), ("Q8_0", KernelError)])
def test_the_cache_is_of_a_type_that_the_kernels_compute_with(
    tmp_path: Path, kv_type: str, error: type[Exception]
) -> None:
    """The kernels' report says that attention over Q8_0 is wrong."""
    report = tmp_path / f"kernels-{kernels_key()}.json"
    report.write_text(json.dumps({CACHED + "Q8_0": "computes wrong results"}))
    _, model = make_model(tmp_path / "model.gguf", head_dim=32)
    plan = Plan(1, 0, model.spec, model.partition, 64, 8, 8, "f32", kv_type)
    store = ShardStore(tmp_path / "shards")
    provision = Provision(store, tmp_path, ask, lambda _: None)
    with pytest.raises(error):
        prepare_host(plan, HostDevice("me", Resources(n_threads=1, repack=False), 0), provision, None)
