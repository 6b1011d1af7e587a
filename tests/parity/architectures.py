"""Every variant of every architecture against llama.cpp, and cut among ranks against one rank. Random weights.

``python -m tests.parity.architectures`` prints the table, ``--only NAME`` some of it. Differences are parts of the
range of the reference's logits."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.cluster.unrounded import write_unrounded
from tests.parity.choices import Imposed, Noted
from tests.parity.rig import cluster_logits, range_difference, reference_logits
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import open_sums

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, N_VOCAB, 300)]
CHUNKS = [TOKENS[:250], TOKENS[250:263], *([token] for token in TOKENS[263:270])]
SHORT_CHUNKS = [TOKENS[:70], TOKENS[70:80], *([token] for token in TOKENS[80:84])]
BOUND = 1e-5
OTHER_ORDER = {"command-r": 1e-3, "qwen2moe": 1e-3, "cohere2": 1e-3, "stablelm 2 12B": 1e-3, "qwen3moe 235B": 1e-3}
"""Where llama.cpp adds in an order that no partial sum can have (FFN, residual, attention), has silu(x) / x for a
sigmoid, or reads keys row by row where so many heads share them that we read tiles (``runtime/folding.py``). With
weights for which activations are rounded to 8 bits the bound is what that rounding makes in llama.cpp itself."""
SHARES = [(1, 1), (3, 2, 2, 1, 1), (1,) * 9]
F32_BOUND = 1e-3
"""Of weights and payloads in 32 bits: sums in another order, whose last bits change what cells hold in 16."""
PIECE_BYTES = 140_000
"""Some blocks are several pieces then; the widest rows still come in multiples of 64."""


def against_llama_cpp(folder: Path, variant: str, kind: str) -> tuple[float, float]:
    """The largest difference of one rank, piece by piece and all at once, and its bound."""
    path = write_made(folder / "model.gguf", VARIANTS[variant](), kind)
    reference, bound = reference_logits(path, CHUNKS), _bound(variant)
    if bound > BOUND and kind != "F16":
        bound = range_difference(reference_logits(write_unrounded(path, folder / "unrounded.gguf"), CHUNKS), reference)
    found = [
        cluster_logits(path, CHUNKS, [Sums(None, None)], is_resident=is_resident, piece_bytes=PIECE_BYTES)[0]
        for is_resident in (False, True)
    ]
    return max(range_difference(ours, reference) for ours in found), bound


def _bound(variant: str) -> float:
    return next((bound for name, bound in OTHER_ORDER.items() if variant.startswith(name)), BOUND)


def against_one_rank(folder: Path, variant: str, all_shares: Sequence[tuple[float, ...]]) -> tuple[list[float], float]:
    """The largest difference of every partition from one rank, whose experts are imposed, and its bound."""
    path, noted = write_made(folder / "model.gguf", VARIANTS[variant](), "F32"), Noted()
    one = _one_rank(path, noted)
    bound = F32_BOUND
    if "MXFP4" in variant:  # whatever the others are, experts are quantised
        unrounded = write_unrounded(path, folder / "unrounded.gguf")
        bound = range_difference(_one_rank(unrounded, Imposed(noted)), one)
    found = []
    for shares in all_shares:
        with open_sums(len(shares), ALGORITHMS["one-shot"], Scale(PayloadFormat.F32, 70 * 1024)) as shared:
            parts = cluster_logits(
                path,
                SHORT_CHUNKS,
                shared.ends,
                shares=shares,
                n_threads=1,
                release=shared.abort,
                choices=[Imposed(noted) for _ in shares],
            )
        found.append(range_difference(np.concatenate(parts, axis=1), one))
    return found, bound


def _one_rank(path: Path, choices: Noted | Imposed) -> Float32Array:
    return cluster_logits(path, SHORT_CHUNKS, [Sums(None, None)], n_threads=1, choices=[choices])[0]


def main() -> None:
    """Prints a line for every variant; fails if a bound is missed."""
    parser = argparse.ArgumentParser(prog="tests.parity.architectures")
    parser.add_argument("--only", default="", help="names that begin so")
    parser.add_argument("--types", default="F16,Q4_0")
    given = parser.parse_args()
    kinds, is_sound = given.types.split(","), True
    names = [f"{len(shares)} ranks" for shares in SHARES]
    print(f"{'variant':34}" + "".join(f"{name:>14}" for name in [*kinds, *names]))
    for variant in VARIANTS:
        if not variant.startswith(given.only):
            continue
        with tempfile.TemporaryDirectory() as folder:
            pairs = [against_llama_cpp(Path(folder), variant, kind) for kind in kinds]
            cut, bound = against_one_rank(Path(folder), variant, SHARES)
        pairs += [(difference, bound) for difference in cut]
        is_sound &= all(difference <= limit for difference, limit in pairs)
        cells = [f"{difference:.1e}{'' if difference <= limit else ' !'}" for difference, limit in pairs]
        print(f"{variant:34}" + "".join(f"{cell:>14}" for cell in cells), flush=True)
    raise SystemExit(not is_sound)


if __name__ == "__main__":
    main()
