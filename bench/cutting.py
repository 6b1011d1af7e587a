"""How fast a rank's slices are cut, and with how much memory, as they are and quantised on the way.

Writes some layers of a model with random weights, and cuts one rank's shard from it in a process of its own for every
type, as a worker does that has the file. Rates count the bytes of the slices as they are in the file. No root.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from bench.models import RandomModel, read_rank, write_gguf
from bench.options import read_names
from bench.report import Report, Value
from bench.shapes import SHAPES, find_shape
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.model.quantization import QUANTS
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.layout import lay_out
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.slices import GgufSource

AS_IT_IS = "none"


@dataclass(frozen=True)
class Cut:
    """What to cut: a rank of so many, from a model's file."""

    model: Path
    rank: int
    n_ranks: int
    quant: str


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """Measures; yields a report for every type."""
    parser = argparse.ArgumentParser(prog="python -m bench cutting", description=__doc__)
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--layers", type=int, default=4, help="so many of the shape's")
    parser.add_argument("--from", dest="source", default="bf16", help="what the file is in: f32, f16, bf16")
    parser.add_argument("--to", default=f"{AS_IT_IS},{','.join(QUANTS)}", metavar="TYPE,…")
    parser.add_argument("--rank", default="0/2", metavar="0/2")
    given = parser.parse_args(arguments)
    rank, n_ranks = read_rank(given.rank)
    quants = read_names("--to", given.to, (AS_IT_IS, *QUANTS))
    shape = replace(find_shape(given.shape), n_layers=given.layers)
    with tempfile.TemporaryDirectory(prefix="tpi-bench-") as folder:
        model = write_gguf(RandomModel(shape, given.source), Path(folder) / "model.gguf")
        for quant in quants:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                values = pool.submit(measure, Cut(model, rank, n_ranks, quant)).result()
            yield Report("cutting").add(shape=given.shape, source=given.source, **values)


def measure(cut: Cut) -> dict[str, Value]:
    """Cuts in this process; MB are 10^6 bytes."""
    plain = read_gguf(cut.model)
    gguf = quantized(plain, None if cut.quant == AS_IT_IS else cut.quant)
    spec = read_spec(gguf, "bench")
    partition = divide(blocks_of(spec), (1.0,) * cut.n_ranks)
    pieces = lay_out(blocks_of(spec), partition, cut.rank)
    parts = [part for piece in pieces for part in piece.parts]
    n_bytes = sum(part.n_rows * plain.tensors[part.tensor].type.row_bytes(part.n_columns) for part in parts)
    path, before = cut.model.with_name(f"{cut.quant}.tpishard"), resident_bytes()
    started_s, busy_s = time.perf_counter(), time.process_time()
    with GgufSource(gguf) as source:
        write_shard(path, ShardHeader(spec, partition, cut.rank), source)
    took_s, busy_s = time.perf_counter() - started_s, time.process_time() - busy_s
    written = path.stat().st_size
    path.unlink()
    return {
        "quant": cut.quant,
        "rank": f"{cut.rank}/{cut.n_ranks}",
        "slices_mb": n_bytes / 1e6,
        "shard_mb": written / 1e6,
        "cut_s": took_s,
        "cpu_s": busy_s,
        "slices_mb_per_s": n_bytes / 1e6 / took_s,
        "largest_piece_mb": max(piece.n_bytes for piece in pieces) / 1e6,
        "peak_mb": peak_resident_bytes() / 1e6,
        "grown_mb": (peak_resident_bytes() - before) / 1e6,
    }
