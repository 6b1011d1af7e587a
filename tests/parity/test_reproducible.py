"""Where it is asked for, a sequence's logits do not depend on who else is in the pass, how its prompt was cut, whether
its beginning was there, where its cells lie, or how many threads compute: bit for bit. Random weights."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.parity.runner import LocalRunner
from tests.variants.all import VARIANTS
from tests.variants.llama import llama
from tests.variants.made import N_VOCAB, Made, write_made
from tpi.engine.passes import Passes, Rows
from tpi.engine.sequences import Sequences
from tpi.gguf.types import TYPES_BY_NAME, TensorType
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankSettings

N_ANSWER, N_OTHERS, MARK = 15, 19, 100
RANDOM = np.random.default_rng(8)
TEXTS: list[list[int]] = RANDOM.integers(3, N_VOCAB, (1 + N_OTHERS, 600)).tolist()
SETTINGS = RankSettings(64, 2048, 1, n_sequences=32, n_kept_states=2, is_reproducible=True)
F16, Q8_0, Q4_0 = (TYPES_BY_NAME[name] for name in ("F16", "Q8_0", "Q4_0"))


@dataclass(frozen=True)
class Case:
    """A model, its weights, who computes it, and how long the prompt is."""

    variant: str
    quantisation: str
    repack: bool = False
    shares: tuple[float, ...] = (1,)
    kv_type: TensorType = F16
    n_prompt: int = 130

    def __str__(self) -> str:
        return f"{self.variant} {self.quantisation} {self.kv_type.name}"

    def make(self) -> Made:
        return llama(2) if self.variant == "llama" else VARIANTS[self.variant]()


CASES = [
    Case("llama", "F32", n_prompt=530),
    Case("llama", "F16", shares=(2, 1), n_prompt=530),
    Case("llama", "Q4_0", repack=True, shares=(1, 1), n_prompt=530),
    Case("llama", "Q4_K", kv_type=Q8_0, n_prompt=530),
    Case("llama", "Q4_K", repack=True, shares=(1, 1, 1), kv_type=Q4_0),
    Case("qwen3moe 30B-A3B", "Q4_0", repack=True),
    Case("gpt-oss 20B", "F16"),
    Case("deepseek2 V2-Lite", "F16"),
    Case("qwen35moe 35B-A3B", "Q4_0"),
]


def alone(runner: LocalRunner, n_prompt: int) -> Float32Array:
    """Logits of the first text after every token from the prompt's last on; the prompt is read in the longest
    chunks."""
    sequences = Sequences(runner, keeps_ended=False)
    passes = Passes(runner, sequences, runner.table)
    sequence, found = sequences.begin(TEXTS[0][:n_prompt]), list[Float32Array]()
    assert sequence is not None
    n_tokens = n_prompt + N_ANSWER
    starts = [*range(0, n_prompt, runner.max_tokens), *range(n_prompt, n_tokens)]
    for start, stop in zip(starts, [*starts[1:], n_tokens], strict=True):
        assert sequences.make_room(sequence, stop - start) == stop - start
        found += [row.values for row in passes.run([Rows(sequence, TEXTS[0][start:stop])]) if stop >= n_prompt]
    return np.stack(found)


class Company:
    """The first text among others who come and go, its prompt read in chunks of all sizes."""

    def __init__(self, runner: LocalRunner, n_prompt: int) -> None:
        self._sequences, self._n_prompt = Sequences(runner, keeps_ended=True), n_prompt
        self._passes = Passes(runner, self._sequences, runner.table)
        begun = ((self._sequences.begin(text[:3]), text) for text in TEXTS[1:])
        self._others = [(sequence, text) for sequence, text in begun if sequence is not None]

    def read(self) -> tuple[Float32Array, int]:
        """What ``alone`` gives, and how many tokens were there."""
        text, found, chunk = TEXTS[0], list[Float32Array](), 0
        first = self._sequences.begin(text[: self._n_prompt], [MARK])
        assert first is not None
        while (at := len(first.tokens)) < self._n_prompt + N_ANSWER:
            chunk = chunk % 20 + 1
            stop = min(at + min(chunk, first.n_to_mark or chunk), self._n_prompt) if at < self._n_prompt else at + 1
            self._sequences.make_room(first, stop - at)
            batch = self._beside(chunk)
            batch.insert(chunk % 2, Rows(first, text[at:stop], keep=stop == MARK))
            rows = self._passes.run(batch)
            if stop >= self._n_prompt:
                found.append(rows[chunk % 2 if len(batch) > 1 else 0].values)
        self._sequences.end(first)
        return np.stack(found), first.n_cached

    def _beside(self, n_most: int) -> list[Rows]:
        """One token, or two, of some others."""
        batch = list[Rows]()
        for number, (other, text) in enumerate(self._others[: n_most - 1]):
            start, n = len(other.tokens), 1 + (number == 3)
            if start < 90 and self._sequences.make_room(other, n) == n:
                batch.append(Rows(other, text[start : start + n]))
        return batch


@pytest.mark.parametrize("case", CASES, ids=str)
def test_others_change_no_bit(tmp_path: Path, case: Case) -> None:
    path = write_made(tmp_path / "model.gguf", case.make(), case.quantisation)
    settings = replace(SETTINGS, kv_type=case.kv_type)
    with LocalRunner(path, settings, repack=case.repack, shares=case.shares) as runner:
        expected = alone(runner, case.n_prompt)
    settings = replace(settings, n_threads=2)
    with LocalRunner(path, settings, repack=case.repack, shares=case.shares, algorithm="two-shot") as runner:
        company = Company(runner, case.n_prompt)
        for is_first in (True, False):
            found, n_cached = company.read()
            assert np.array_equal(found, expected)
            assert is_first == (n_cached == 0)
        assert max(len(work.runs) for work in runner.passes) == 20
