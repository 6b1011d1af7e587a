"""What processes grow by is no more than what is planned for it, and not far less."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from bench.growth import measure_grammars, measure_graphs, measure_mask
from tests.cluster.commands import LONG_FORM
from tpi.engine.grammar import memory_bytes
from tpi.runtime import graphs, passarrays


@pytest.mark.parametrize("shape", ["", pytest.param("llama-3.1-8b", marks=LONG_FORM)])
def test_grammars(shape: str) -> None:
    """Of small and of large vocabularies; a process of its own begins without any."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(measure_grammars, shape).result()
    n_tokens, grown = int(found["n_tokens"]), float(found["later_mb"]) * 1e6
    assert n_tokens == (128_256 if shape else 2048)
    assert 0.6 * memory_bytes(n_tokens) < grown < memory_bytes(n_tokens)


def test_graphs() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(measure_graphs).result()
    for name, n_nodes in (("attention_kb", 18), ("pass_kb", 107)):
        planned = graphs._GRAPH_BYTES + n_nodes * graphs._NODE_BYTES
        assert 0.5 * planned < float(found[name]) * 1e3 < 1.1 * planned


def test_masks() -> None:
    found = measure_mask()
    assert found["usual"] == pytest.approx(passarrays._SEEN_BYTES, rel=0.05)
    assert found["reproducible"] == pytest.approx(passarrays._OWN_SEEN_BYTES, rel=0.05)
