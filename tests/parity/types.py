"""Every data type that ggml's CPU kernels multiply, against llama.cpp, and cut among ranks against one rank.

``python -m tests.parity.types`` prints the table. Differences are parts of the range of the reference's logits. Weights
are random, those of a small dense model and of one with experts; ggml quantises them, with random importance.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.parity.architectures import BOUND, F32_BOUND, TOKENS
from tests.parity.choices import Imposed, Noted
from tests.parity.rig import cluster_logits, range_difference, reference_logits
from tests.variants.made import N_VOCAB, Made, dense, write_made
from tests.variants.qwen3moe import Shape, qwen3moe
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import open_sums

CHUNKS = [TOKENS[:70], TOKENS[70:75], *([token] for token in TOKENS[75:78])]
"""Tiled kernels, and others; of rows too few for heads to be folded, which llama.cpp does not do."""
SHARES = [(1, 1), (3, 2, 2, 1, 1)]
CHANCE = 1.5
"""One rounding that is flipped may be worth somewhat more than all roundings are that there were in so few rows."""
_WIDTH, _HEAD = 256, 64


def _dense() -> Made:
    """A layer whose heads and columns blocks of 256 cut in two and five; there are parts of several sizes, and ranks
    without heads."""
    made = dense("llama", 1, _WIDTH, 8, 4, _HEAD, 5 * 256)
    made.add("output", N_VOCAB, _WIDTH)
    return made


def _experts() -> Made:
    """A layer of experts that blocks of 256 cut in two."""
    return qwen3moe(Shape(1, _WIDTH, 6, 8, _HEAD, 2 * 256))


MODELS: Mapping[str, Callable[[], Made]] = {"dense": _dense, "experts": _experts}


@dataclass(frozen=True)
class Written:
    """A model's file, and that of its weights for kernels that do not round activations; None: they do not round them
    here."""

    path: Path
    unrounded: Path | None


def write_model(folder: Path, model: str, kind: str) -> Written:
    """Writes one of ``MODELS`` in this type."""
    unrounded = folder / f"{model}-unrounded.gguf" if kind not in ("F32", "F16") else None
    return Written(write_made(folder / f"{model}.gguf", MODELS[model](), kind, unrounded=unrounded), unrounded)


def against_llama_cpp(path: Path, *, repack: bool = False) -> float:
    """The largest difference of one rank; ``repack``: both rearrange what their kernels rearrange."""
    ours = cluster_logits(path, CHUNKS, [Sums(None, None)], repack=repack)[0]
    return range_difference(ours, reference_logits(path, CHUNKS, repack=repack))


@dataclass(frozen=True)
class Cut:
    """How far every partition is from one rank, and ``noise``, what rounding activations makes there; 0: kernels do not
    round them to less than 16 bits."""

    differences: tuple[float, ...]
    noise: float

    @property
    def bound(self) -> float:
        return max(F32_BOUND, CHANCE * self.noise)

    @property
    def is_sound(self) -> bool:
        return max(self.differences) <= self.bound


def against_one_rank(model: Written, all_shares: Sequence[tuple[float, ...]]) -> Cut:
    """Of a model whose choice of experts is imposed."""
    noted = Noted()
    one, noise = _logits(model.path, (1,), [noted]), 0.0
    if model.unrounded is not None:
        noise = range_difference(_logits(model.unrounded, (1,), [Imposed(noted)]), one)
    cut = (_logits(model.path, shares, [Imposed(noted) for _ in shares]) for shares in all_shares)
    return Cut(tuple(range_difference(found, one) for found in cut), noise)


def _logits(path: Path, shares: tuple[float, ...], choices: Sequence[Noted | Imposed]) -> Float32Array:
    if len(shares) == 1:
        return cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1, choices=choices)[0]
    with open_sums(len(shares), ALGORITHMS["one-shot"], Scale(PayloadFormat.F32, 70 * 1024)) as shared:
        parts = cluster_logits(
            path, CHUNKS, shared.ends, shares=shares, n_threads=1, release=shared.abort, choices=choices
        )
    return np.concatenate(parts, axis=1)


def is_rearranged(kind: str) -> bool:
    """Whether this CPU's kernels rearrange matrices of this type."""
    with Repacker() as repacker:
        return repacker.takes(TYPES_BY_NAME[kind].id, _WIDTH, _WIDTH)


def main() -> None:
    """Prints a line for every type; fails if a bound is missed."""
    parser = argparse.ArgumentParser(prog="tests.parity.types")
    parser.add_argument("--only", default="", help="types, separated by commas")
    chosen = parser.parse_args().only.upper().split(",")
    names = ["1 rank", "rearranged", *(f"{len(shares)} ranks" for shares in SHARES), "rounding"]
    print(
        f"{'type':9}{'bits':>6}{'block':>7}"
        + "".join(f"{model + ': 1 rank':>17}" + "".join(f"{name:>12}" for name in names[1:]) for model in MODELS)
    )
    is_sound = True
    for name, kind in TYPES_BY_NAME.items():
        if chosen != [""] and name not in chosen:
            continue
        cells = ""
        with tempfile.TemporaryDirectory() as folder:
            for model in MODELS:
                written = write_model(Path(folder), model, name)
                alone = [against_llama_cpp(written.path)]
                alone += [against_llama_cpp(written.path, repack=True)] if is_rearranged(name) else []
                cut = against_one_rank(written, SHARES)
                is_sound &= max(alone) <= BOUND and cut.is_sound
                cells += f"{_cell(alone[0], BOUND):>17}" + f"{_cell(alone[1], BOUND) if alone[1:] else '-':>12}"
                cells += (
                    "".join(f"{_cell(found, cut.bound):>12}" for found in cut.differences) + f"{_cell(cut.noise):>12}"
                )
        print(f"{name:9}{8 * kind.block_bytes / kind.block_elements:6.4g}{kind.block_elements:7}{cells}", flush=True)
    raise SystemExit(not is_sound)


def _cell(difference: float, limit: float = 1.0) -> str:
    return f"{difference:.1e}".replace("0.0e+00", "0") + ("" if difference <= limit else " !")


if __name__ == "__main__":
    main()
