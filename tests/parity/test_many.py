"""Several sequences in one pass, scattered over the cells, begun where others were: the logits that each gets alone,
for every kind of state. Random weights."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.rig import range_difference
from tests.parity.runner import LocalRunner
from tests.parity.test_cut_back import KINDS
from tests.sequences import TokenSequence
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tpi.engine.passes import Passes, Rows
from tpi.engine.sequences import Sequence, Sequences
from tpi.model.states import FULL
from tpi.runtime import sights
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankSettings

RANDOM = np.random.default_rng(5)
N_ALIKE, N_PROMPT, N_TOKENS = 75, 110, 130
SETTINGS = RankSettings(max_tokens=64, n_cells=1024, n_threads=1, n_sequences=4, n_kept_states=2)
ALIKE = RANDOM.integers(3, N_VOCAB, N_ALIKE).tolist()
TEXTS = [ALIKE + RANDOM.integers(3, N_VOCAB, N_TOKENS - N_ALIKE).tolist() for _ in range(5)]


def alone(path: Path, text: list[int]) -> Float32Array:
    """Logits after every token from the prompt's last on."""
    with LocalRunner(path, SETTINGS) as runner:
        sequence = TokenSequence(runner, runner.table)
        sequence.keep_prefix(text[:N_PROMPT])
        rows = [row for row in sequence.prefill(text[:N_PROMPT]) if row is not None]
        rows += [sequence.run([token])[0] for token in text[N_PROMPT:]]
        return np.stack([row.values for row in rows])


class Party:
    """Sequences that share passes."""

    def __init__(self, runner: LocalRunner) -> None:
        self.sequences = Sequences(runner, keeps_ended=True)
        self.found: dict[int, list[Float32Array]] = {}
        self._passes = Passes(runner, self.sequences, runner.table)
        self._live: dict[int, Sequence] = {}

    def begin(self, number: int) -> int:
        sequence = self.sequences.begin(TEXTS[number][:N_PROMPT])
        assert sequence is not None
        self._live[number], self.found[number] = sequence, []
        return len(sequence.tokens)

    def step(self, n_tokens: dict[int, int]) -> None:
        """The next tokens of those who still have some."""
        batch = list[tuple[int, Rows]]()
        for number, n in n_tokens.items():
            sequence, text = self._live[number], TEXTS[number]
            first = len(sequence.tokens)
            stop = min(first + n, N_PROMPT) if first < N_PROMPT else min(first + 1, N_TOKENS)
            if stop > first:
                assert self.sequences.make_room(sequence, stop - first) == stop - first
                batch.append((number, Rows(sequence, text[first:stop], keep=stop == N_PROMPT)))
        rows = self._passes.run([rows for _, rows in batch]) if batch else ()
        for (number, _), row in zip(batch, rows, strict=True):
            if len(self._live[number].tokens) >= N_PROMPT:
                self.found[number].append(row.values)

    def end(self, number: int) -> None:
        self.sequences.end(self._live.pop(number))


@pytest.mark.parametrize(
    ("kind", "copies_cells"), [*((kind, True) for kind in KINDS), ("cells", False), ("windows", False)]
)
def test_each_gets_what_it_gets_alone(
    tmp_path: Path, kind: str, copies_cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All cells behind a mask, and each sequence's own."""
    monkeypatch.setattr(sights, "_CHECK_BYTES", 1e9 if copies_cells else 1e-9)
    path = write_made(tmp_path / "model.gguf", VARIANTS[KINDS[kind]](), "F32")
    with LocalRunner(path, SETTINGS) as runner:
        party = Party(runner)
        assert party.begin(0) == 0 and party.begin(1) == 0
        for n in (40, 7, 30, 33, 1, 1):
            party.step({0: n, 1: 60 - n if n < 60 else 1})
        n_cached = party.begin(2)
        party.step({0: 1, 2: 20, 1: 1})
        party.end(0)
        n_cached += party.begin(3)
        for n in (20, 50, *[1] * 60):
            party.step({3: n, 1: 1, 2: 9})
        party.end(1)
        n_cached += party.begin(4)
        for _ in range(60):
            party.step({4: 13, 3: 1})
        assert bool(runner.workspace.arrays.sights.blocks[FULL].any()) == copies_cells
        cells = [int(cell) for work in runner.passes for cell in work.cells]
        assert cells != sorted(cells) and max(len(work.sampled) for work in runner.passes) == 3
    if kind in ("cells", "latent"):
        assert n_cached == 3 * N_ALIKE
    for number in (1, 2, 3, 4):
        expected = alone(path, TEXTS[number])
        assert range_difference(np.stack(party.found[number]), expected) <= 1e-3, number


@pytest.mark.parametrize("kind", KINDS)
def test_a_fork_goes_its_own_way(tmp_path: Path, kind: str) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[KINDS[kind]](), "F32")
    ways = TEXTS[0][:N_PROMPT] + TEXTS[1][N_PROMPT:], TEXTS[0]
    with LocalRunner(path, SETTINGS) as runner:
        sequences = Sequences(runner, keeps_ended=True)
        passes = Passes(runner, sequences, runner.table)
        first = sequences.begin(TEXTS[0][:N_PROMPT])
        assert first is not None
        for start, stop in ((0, 60), (60, N_PROMPT)):
            sequences.make_room(first, stop - start)
            passes.run([Rows(first, TEXTS[0][start:stop])])
        second = sequences.fork(first)
        assert second is not None and second.tokens == first.tokens and second.number != first.number
        found: list[list[Float32Array]] = [[], []]
        for position in range(N_PROMPT, N_TOKENS):
            for sequence in (first, second):
                assert sequences.make_room(sequence, 1) == 1
            batch = [Rows(sequence, [way[position]]) for sequence, way in zip((first, second), ways, strict=True)]
            for rows, row in zip(found, passes.run(batch), strict=True):
                rows.append(row.values)
    for way, rows in zip(ways, found, strict=True):
        assert range_difference(np.stack(rows), alone(path, way)[1:]) <= 1e-3
