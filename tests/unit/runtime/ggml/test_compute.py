"""Ending a run from outside, between two nodes, and running again."""

import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.limits import said_by
from tests.unit.runtime.rigs import make_model, make_pass, running
from tpi.errors import Cancelled
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.rankmodel import RankSettings


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("n_tokens", [1, 16])
def test_a_run_that_is_aborted_is_cancelled_until_it_is_allowed(
    tmp_path: Path, is_resident: bool, n_tokens: int
) -> None:
    """Whole passes in one graph (one token), whole blocks, and pieces."""
    gguf, model = make_model(tmp_path / "model.gguf")
    with running(gguf, model, RankSettings(16, 64, 2), is_resident=is_resident) as rank:
        first = rank.run(make_pass(model, 0, n_tokens, [0]))
        assert first is not None
        expected = first.copy()
        compute = rank._workspace.compute
        compute.abort()
        for _ in range(2):
            with pytest.raises(Cancelled, match="the computation was stopped"):
                rank.run(make_pass(model, 0, n_tokens, [0]))
        compute.allow()
        rank._workspace.cache.forget()
        again = rank.run(make_pass(model, 0, n_tokens, [0]))
        assert again is not None and np.array_equal(again, expected)


def test_what_runs_is_ended_from_another_thread(tmp_path: Path) -> None:
    """The flag is looked at between two nodes, not before a run alone."""
    gguf, model = make_model(tmp_path / "model.gguf", n_layers=1, n_embd=1024, n_heads=16, n_kv_heads=16, n_ff=8192)
    with running(gguf, model, RankSettings(512, 512, 1), is_resident=True) as rank:
        work = make_pass(model, 0, 512, [0])
        rank.run(work)
        compute = rank._workspace.compute
        timer = threading.Timer(rank.times.compute_s / 3, compute.abort)
        timer.start()
        with pytest.raises(Cancelled):
            rank.run(work)
        timer.join()
        compute.allow()
        assert rank.run(work) is not None


def test_aborting_after_the_end_and_closing_twice() -> None:
    compute = Compute(2)
    compute.abort()
    compute.close()
    compute.close()
    compute.abort()
    compute.allow()


NO_MEMORY = """
from tests.limits import give_no_more_than
from tpi.errors import MemoryBudgetError
from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.binding import TYPE_F32, InitParams, ggml
from tpi.runtime.ggml.compute import Compute

base = ggml().base
context = base.ggml_init(InitParams(1 << 16, None, True))
weights = base.ggml_new_tensor_2d(context, TYPES_BY_NAME["Q4_0"].id, 1 << 16, 1)
inputs = base.ggml_new_tensor_2d(context, TYPE_F32, 1 << 16, 1024)
graph = base.ggml_new_graph_custom(context, 8, False)
base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, weights, inputs))
with Compute(1) as compute:
    give_no_more_than(16 << 20)
    try:
        compute.plan(graph)
    except MemoryBudgetError as error:
        print(error)
    print(compute.scratch_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
def test_a_work_buffer_beyond_memory_is_one_line() -> None:
    """2^26 inputs of a product, in blocks of 32 that take 34 bytes."""
    said = said_by(NO_MEMORY)
    assert re.fullmatch(r"no room for 71,303,[0-9]{3} bytes .+ \(Cannot allocate memory\): .+", said[0])
    assert said[1:] == ["0"], "nothing was noted that is not there"
