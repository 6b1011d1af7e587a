"""Query heads that are rows of one: when, and that the result is that of heads for themselves."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.runtime.rigs import make_model, make_pass, running
from tpi.gguf.types import F32, TYPES_BY_NAME
from tpi.runtime import sights
from tpi.runtime.folding import fold_of, masked_values
from tpi.runtime.passes import BLOCK_CELLS, Pass, Run
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import Attention, RankModel, RankSettings

ATTENTION = Attention(32, 256, 256, 64, 8)
SETTINGS = RankSettings(128, 4096, 2)
N_CELLS = 1024


@pytest.mark.parametrize(
    ("n_sequences", "n_rows", "fold"),
    [
        (1, 1, 1),  # few rows are no better off
        (1, 3, 1),
        (1, 4, 8),  # is filled up to 64
        (1, 63, 8),
        (1, 64, 1),  # enough as they are
        (2, 4, 1),  # nothing to fill up with between sequences
        (2, 8, 8),
    ],
)
def test_when(n_sequences: int, n_rows: int, fold: int) -> None:
    assert fold_of([ATTENTION], SETTINGS, n_sequences, n_rows) == fold


def test_what_cannot_be_folded() -> None:
    def fold(attention: Attention = ATTENTION, settings: RankSettings = SETTINGS) -> int:
        return fold_of([ATTENTION, attention], settings, 1, 16)

    assert fold() == 8
    assert fold(replace(ATTENTION, n_sharing=4)) == 1, "a mask has rows for as many heads in all blocks"
    assert fold(settings=replace(SETTINGS, is_reproducible=True)) == 1
    assert fold(settings=replace(SETTINGS, kv_type=TYPES_BY_NAME["Q8_0"])) == 1, "no tiles of these"
    assert fold(settings=replace(SETTINGS, kv_type=F32)) == 8
    assert fold(settings=replace(SETTINGS, n_threads=16)) == 1, "too many threads for so few rows"
    assert fold(settings=replace(SETTINGS, max_tokens=7)) == 1, "more than there is memory for"
    assert fold_of([replace(ATTENTION, n_sharing=1)], SETTINGS, 1, 63) == 1


def test_room_for_masks_is_bounded() -> None:
    assert masked_values([ATTENTION], SETTINGS, 100) == 63 * 8 * 100
    assert masked_values([ATTENTION], SETTINGS, 10_000) == 2 << 20
    assert masked_values([ATTENTION], SETTINGS, 100_000) == 128 * 100_000
    assert masked_values([], SETTINGS, 100) == 128 * 100


@contextmanager
def counted(*, is_off: bool) -> Iterator[list[int]]:
    """How many heads of every group were rows of one."""
    found = list[int]()

    def fold(*arguments: object) -> int:
        found.append(1 if is_off else fold_of(*arguments))  # type: ignore[arg-type]
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sights, "fold_of", fold)
        yield found


def later(model: RankModel, first: int, n_rows: int) -> Pass:
    return replace(make_pass(model, first, n_rows), pass_id=2)


def together(model: RankModel, lengths: list[tuple[int, int]]) -> list[Pass]:
    """Two passes of sequences of so many tokens before and new ones, in cells apart; all of the new ones sampled."""
    starts, at = list[int](), 0
    for n_before, n_new in lengths:
        starts.append(at)
        at += -(-(n_before + n_new) // BLOCK_CELLS) * BLOCK_CELLS

    def one(number: int, spans: list[tuple[int, int]]) -> Pass:
        positions = np.concatenate([np.arange(*span) for span in spans])
        owners = np.repeat(np.arange(len(spans)), [stop - start for start, stop in spans])
        cells = np.asarray(starts)[owners] + positions
        ends = np.asarray(starts)[owners] + positions
        every = np.arange(int(cells.max()) + 1)[None, :]
        seen = (every >= np.asarray(starts)[owners][:, None]) & (every <= ends[:, None])
        embeddings = np.random.default_rng(number).standard_normal((len(cells), model.spec.n_embd))
        runs = tuple(Run(sequence, stop - start) for sequence, (start, stop) in enumerate(spans))
        return Pass(
            number,
            embeddings.astype(np.float32),
            positions.astype(np.int32),
            cells.astype(np.int64),
            seen,
            np.arange(len(cells), dtype=np.int32),
            runs=runs,
        )

    return [one(1, [(0, n) for n, _ in lengths]), one(2, [(n, n + new) for n, new in lengths])]


CASES: dict[str, Callable[[RankModel], list[Pass]]] = {
    "filled up": lambda model: [make_pass(model, 0, 100), later(model, 100, 9)],
    "many rows": lambda model: [make_pass(model, 0, 100), later(model, 100, 40)],
    "a reader beside answers": lambda model: together(model, [(30, 1), (40, 1), (70, 1), (50, 12)]),
    "two readers": lambda model: together(model, [(90, 16), (20, 16), (60, 1)]),
}


@pytest.mark.parametrize("is_resident", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_results_are_the_same(tmp_path: Path, case: str, is_resident: bool) -> None:
    gguf, model = make_model(tmp_path / "m.gguf", n_heads=16, n_kv_heads=4, context=N_CELLS)
    settings = RankSettings(256, N_CELLS, 2, n_sequences=4)

    def logits(*, is_off: bool) -> tuple[Float32Array, list[int]]:
        with running(gguf, model, settings, is_resident=is_resident) as rank, counted(is_off=is_off) as found:
            for work in CASES[case](model):
                result = rank.run(work)
            assert result is not None
            return result.copy(), found

    (folded, folds), (plain, _) = logits(is_off=False), logits(is_off=True)
    assert 4 in folds
    assert float(np.abs(folded - plain).max()) < 2e-3 * float(np.ptp(plain))
    assert (folded != plain).any(), "other kernels, other roundings"
