"""A sequence is cut back and goes on, for every kind of state: the same bits as from the start with the same passes;
and two sequences in one pass do not touch each other. Random weights."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.parity.rig import range_difference
from tests.parity.runner import LocalRunner
from tests.sequences import TokenSequence
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tpi.errors import Cancelled
from tpi.runtime.ggml.binding import ComputePlan
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.passes import Pass, Run
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankSettings

KINDS = {
    "cells": "llama 3.2 1B",
    "windows": "gpt-oss 20B",
    "windows and shared cells": "gemma4 E2B",
    "latent": "deepseek2 V2-Lite",
    "recurrent": "qwen35moe 35B-A3B",
    "state spaces beside cells": "falcon-h1 normed",
}
RANDOM = np.random.default_rng(9)
OLD, NEW = ([int(token) for token in RANDOM.integers(3, N_VOCAB, 450)] for _ in range(2))
SETTINGS = RankSettings(max_tokens=64, n_cells=512, n_threads=1, n_kept_states=2)


def feed(runner: LocalRunner, sequence: TokenSequence, tokens: Sequence[int]) -> list[Float32Array]:
    return [row.values for row in sequence.prefill(tokens) if row is not None]


def repeat(runner: LocalRunner, passes: Sequence[Pass]) -> Float32Array:
    """The logits of the last of ``passes``, run on a rank that has not computed anything."""
    [row] = [runner.run(work) for work in passes][-1]
    return row.values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_forgotten, is_resident", [(300, False), (300, True), (40, True)])
def test_cut_back_and_go_on(tmp_path: Path, kind: str, n_forgotten: int, is_resident: bool) -> None:
    path, n_kept = write_made(tmp_path / "model.gguf", VARIANTS[KINDS[kind]](), "F16"), 400 - n_forgotten
    with LocalRunner(path, SETTINGS, is_resident=is_resident) as runner:
        sequence = TokenSequence(runner, runner.table)
        assert sequence.keep_prefix(OLD[:n_kept]) == 0
        feed(runner, sequence, OLD[:n_kept])
        begun = list(runner.passes)
        feed(runner, sequence, OLD[n_kept:400])
        prompt = OLD[:n_kept] + NEW[:90]
        n_resumed = sequence.keep_prefix(prompt)
        ring_is_gone = kind.startswith("windows") and n_forgotten == 300
        assert n_resumed == (0 if ring_is_gone else n_kept)
        n_before = len(runner.passes)
        logits = feed(runner, sequence, prompt[n_resumed:])[-1]
        passes = (begun if n_resumed else []) + runner.passes[n_before:]
    with LocalRunner(path, SETTINGS, is_resident=is_resident) as other:
        assert np.array_equal(repeat(other, passes), logits)


def test_a_state_that_was_not_kept_is_computed_again_and_kept_then(tmp_path: Path) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[KINDS["recurrent"]](), "F16")
    with LocalRunner(path, SETTINGS) as runner:
        sequence = TokenSequence(runner, runner.table)
        for number, expected in enumerate((0, 0, 100, 100)):
            prompt = OLD[:100] + NEW[number * 50 : number * 50 + 80]
            assert sequence.keep_prefix(prompt) == expected, "the first shows where others begin alike"
            feed(runner, sequence, prompt[expected:])
        assert sequence.keep_prefix([*prompt, 5]) == len(prompt), "after the prompt it is kept in any case"


class Stopper:
    """Runs graphs up to one that is stopped."""

    def __init__(self, compute: Compute, n_left: int) -> None:
        self._run, self._n_left = compute.run, n_left

    def __call__(self, graph: int, plan: ComputePlan) -> None:
        self._n_left -= 1
        if self._n_left == 0:
            raise Cancelled("stopped")
        self._run(graph, plan)


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_was_stopped_is_repeated(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle, or ended on this rank but not on another: nothing has advanced twice."""
    path = write_made(tmp_path / "model.gguf", VARIANTS[KINDS[kind]](), "F16")
    with LocalRunner(path, SETTINGS) as runner:
        sequence = TokenSequence(runner, runner.table)
        sequence.keep_prefix(OLD)
        expected = [feed(runner, sequence, OLD[:70])[-1], feed(runner, sequence, OLD[70:80])[-1]]
        passes = list(runner.passes)
    with LocalRunner(path, SETTINGS, is_resident=False) as runner:
        for work in passes:
            monkeypatch.setattr(runner.workspace.compute, "run", Stopper(runner.workspace.compute, 5))
            with pytest.raises(Cancelled):
                runner.run(work)
            monkeypatch.undo()
            runner.run(work)
            again = runner.run(work)
        assert np.array_equal(again[-1].values, expected[-1])


def merged(runner: LocalRunner, number: int, rows: Sequence[tuple[int, int, Sequence[int]]]) -> Pass:
    """A pass of several sequences: number, first position, tokens. Each has half of the cells."""
    half = SETTINGS.n_cells // 2
    tokens = [token for _, _, some in rows for token in some]
    positions = np.concatenate([np.arange(first, first + len(some)) for _, first, some in rows])
    owners = np.concatenate([np.full(len(some), sequence) for sequence, _, some in rows])
    visible: npt.NDArray[np.bool_] = np.zeros((len(tokens), 2 * half), bool)
    for row, (position, owner) in enumerate(zip(positions, owners, strict=True)):
        visible[row, owner * half : owner * half + position + 1] = True
    return Pass(
        pass_id=number,
        embeddings=runner.table.rows(tokens),
        positions=positions.astype(np.int32),
        cells=(owners * half + positions).astype(np.int64),
        visible=visible,
        sampled=np.arange(len(tokens), dtype=np.int32),
        runs=tuple(Run(sequence, len(some)) for sequence, _, some in rows),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_two_sequences_in_one_pass(tmp_path: Path, kind: str) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[KINDS[kind]](), "F32")
    settings = RankSettings(max_tokens=64, n_cells=512, n_threads=1, n_sequences=2)
    cuts = {0: [30, 5, 1, 1, 20, 1], 1: [17, 1, 9, 1, 1, 30]}
    texts = {0: OLD, 1: NEW}

    def run(sequences: Sequence[int]) -> dict[int, list[Float32Array]]:
        found: dict[int, list[Float32Array]] = {sequence: [] for sequence in sequences}
        first = dict.fromkeys(sequences, 0)
        with LocalRunner(path, settings) as runner:
            for number in range(len(cuts[0])):
                rows = [(s, first[s], texts[s][first[s] :][: cuts[s][number]]) for s in sequences]
                values = [row.values for row in runner.run(merged(runner, number, rows))]
                for sequence, _, some in rows:
                    found[sequence] += values[: len(some)]
                    values, first[sequence] = values[len(some) :], first[sequence] + len(some)
        return found

    both = run((0, 1))
    for sequence in (0, 1):
        alone = np.stack(run((sequence,))[sequence])
        assert range_difference(np.stack(both[sequence]), alone) <= 1e-3
