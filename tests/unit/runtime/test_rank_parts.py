"""Passes that are computed in two parts: the same bits as in one, whatever waits for whom."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.unit.runtime.rigs import make_model, make_pass, running
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.model.flow import Flow
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array, SumStep
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import N_SPLIT_TOKENS, RankModel, RankSettings
from tpi.testing.allreduce_suite import on_all_ranks
from tpi.testing.meshes import open_sums

PIECE_BYTES = 60_000


class Watched:
    """An allreduce that notes what begins and what ends."""

    def __init__(self) -> None:
        self._sums = Sums(None, None)
        self.told: list[tuple[str, int, int]] = []

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        self.told.append(("start", step.flow.block, step.part))
        self._sums.start(step, partial, out)

    def finish(self, step: SumStep) -> None:
        self.told.append(("finish", step.flow.block, step.part))
        self._sums.finish(step)

    def native(self, flow: Flow, n_values: int) -> None:
        return None


def passes(model: RankModel, n_tokens: int, sampled: Sequence[int] | None) -> list[Pass]:
    """A long one, and one more token that sees all its cells."""
    return [make_pass(model, 0, n_tokens, sampled), make_pass(model, n_tokens, 1)]


def logits_of(
    path: Path, n_tokens: int, n_parts: int, is_resident: bool, sampled: Sequence[int] | None
) -> list[Float32Array]:
    gguf, model = make_model(path, piece_bytes=PIECE_BYTES)
    settings = RankSettings(n_tokens, 320, 2, n_parts=n_parts)
    results = []
    with running(gguf, model, settings, is_resident=is_resident) as rank:
        for work in passes(model, n_tokens, sampled):
            logits = rank.run(work)
            assert logits is not None
            results.append(logits.copy())
    return results


@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("n_tokens", [128, 129, 200, 255])
@pytest.mark.parametrize("sampled", [None, [0, 3, 70, 127]], ids=["all", "some"])
def test_two_parts_give_the_bits_of_one(
    tmp_path: Path, n_tokens: int, is_resident: bool, sampled: Sequence[int] | None
) -> None:
    """Both halves have 64 rows or more, so that the same kernels compute them."""
    one = logits_of(tmp_path / "model.gguf", n_tokens, 1, is_resident, sampled)
    two = logits_of(tmp_path / "model.gguf", n_tokens, 2, is_resident, sampled)
    for whole, split in zip(one, two, strict=True):
        assert np.array_equal(whole, split)
    assert np.std(one[0]) > 0.5


@pytest.mark.parametrize("types", ["Q4_K", "Q8_0"])
def test_two_parts_give_the_bits_of_one_with_quantised_weights(tmp_path: Path, types: str) -> None:
    results = []
    for n_parts in (1, 2):
        gguf, model = make_model(tmp_path / "model.gguf", piece_bytes=PIECE_BYTES, types=types)  # type: ignore[arg-type]
        with running(gguf, model, RankSettings(201, 320, 2, n_parts=n_parts)) as rank:
            logits = rank.run(make_pass(model, 0, 201))
            assert logits is not None
            results.append(logits.copy())
    assert np.array_equal(results[0], results[1])


def test_in_memory_or_streamed_gives_the_same_bits(tmp_path: Path) -> None:
    results = [logits_of(tmp_path / "model.gguf", 140, 2, is_resident, None) for is_resident in (True, False)]
    for resident, streamed in zip(*results, strict=True):
        assert np.array_equal(resident, streamed)


@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "streamed"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["pieces", "one piece"])
def test_one_part_is_summed_while_the_other_is_computed(tmp_path: Path, is_resident: bool, is_cut: bool) -> None:
    """Where a block is held piece by piece, both parts pass through each piece, and are summed one after the other
    from the last one on."""
    watched = Watched()
    gguf, model = make_model(tmp_path / "model.gguf", piece_bytes=PIECE_BYTES if is_cut else 1 << 24)
    with running(gguf, model, RankSettings(128, 320, 2, n_parts=2), watched, is_resident) as rank:
        rank.run(make_pass(model, 0, N_SPLIT_TOKENS, [5]))
    expected = [("start", 0, 0), ("start", 0, 1)]
    for block in (1, 2):
        if is_cut and not is_resident:
            expected += [("finish", block - 1, 0), ("finish", block - 1, 1), ("start", block, 0), ("start", block, 1)]
        else:
            expected += [("finish", block - 1, 0), ("start", block, 0), ("finish", block - 1, 1), ("start", block, 1)]
    expected += [("finish", 2, 0), ("finish", 2, 1)]
    last = watched.told.index(("start", 3, 0))
    assert watched.told[:last] == expected
    assert {part for _, _, part in watched.told[last:]} == {0}, "one row is not split"


def test_short_passes_are_not_split(tmp_path: Path) -> None:
    watched = Watched()
    gguf, model = make_model(tmp_path / "model.gguf")
    with running(gguf, model, RankSettings(N_SPLIT_TOKENS, 320, 2, n_parts=2), watched) as rank:
        rank.run(make_pass(model, 0, N_SPLIT_TOKENS - 1, [0]))
    assert {part for _, _, part in watched.told} == {0}


def run_all(ranks: Sequence[Rank], works: Sequence[Pass]) -> list[Float32Array]:
    """Whole rows of all passes, put together from the ranks' slices."""
    slices: dict[int, list[Float32Array]] = {}

    def work(number: int) -> None:
        slices[number] = []
        for one in works:
            logits = ranks[number].run(one)
            if logits is not None:
                slices[number].append(logits.copy())

    assert on_all_ranks(work, len(ranks)) == [None] * len(ranks)
    parts = [slices[number] for number in range(len(ranks)) if slices[number]]
    return [np.concatenate(group, axis=1) for group in zip(*parts, strict=True)]


@pytest.mark.parametrize("weights", [(1, 1), (1, 0, 1)])
@pytest.mark.parametrize("is_resident", [True, False], ids=["resident", "streamed"])
def test_several_ranks_whose_sums_a_helper_carries_through(
    tmp_path: Path, weights: Sequence[float], is_resident: bool
) -> None:
    """The same bits on every rank's slice, in one part and in two, from pass to pass."""
    n_ranks, n_tokens = len(weights), 140
    gguf, model = make_model(tmp_path / "model.gguf")
    results: dict[int, list[Float32Array]] = {}
    for n_parts in (1, 2):
        scale = Scale(PayloadFormat.F32, n_tokens * model.spec.n_embd, n_parts)
        settings = RankSettings(n_tokens, 320, 1, n_parts=n_parts)
        with ExitStack() as stack:
            few = model.spec.n_embd
            shared = stack.enter_context(open_sums(n_ranks, ALGORITHMS["one-shot"], scale, max_few_values=few))
            ranks = []
            for number in range(n_ranks):
                gguf, own = make_model(tmp_path / f"model{number}.gguf", weights, number, PIECE_BYTES)
                ranks.append(stack.enter_context(running(gguf, own, settings, shared.ends[number], is_resident)))
            results[n_parts] = run_all(ranks, passes(model, n_tokens, None))
    alone = logits_of(tmp_path / "model.gguf", n_tokens, 1, True, None)
    for one, two, reference in zip(results[1], results[2], alone, strict=True):
        assert np.array_equal(one, two)
        assert np.abs(one - reference).max() < 2e-2
