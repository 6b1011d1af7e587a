"""The window of weights of one rank: its streaming rate against its own reader without compute, and the memory peak.

    python -m bench window --shape llama-2-70b --rank 3/8 --quant q4_0

``rate_ratio`` is the streaming rate with compute divided by that of the same window without, in interleaved pairs;
``time_ratio`` a token's time divided by the longer of its reading and its computing. Writes the rank's shard to the
work folder if it is not there. The disk must not be busy with other things.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from bench.children import last_words, module_variables
from bench.models import RandomModel, read_rank, write_rank
from bench.report import Report
from bench.shapes import SHAPES, find_shape
from bench.streaming import Figures, Request
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.cluster.epoch.plancheck import KV_TYPES
from tpi.cluster.epoch.planning import kv_type_of
from tpi.config import parse_bytes
from tpi.errors import ModelFileError, TpiError, UsageError
from tpi.weights.shards.shard import open_shard


def rank_path(model: RandomModel, rank: int, count: int, work: Path) -> Path:
    """Where the shard of one of ``count`` ranks of equal parts lies, or will lie."""
    return work / f"{model.shape.name}-{model.quantisation}-{model.seed}-{rank}of{count}.tpishard"


def find_rank(model: RandomModel, rank_text: str, work: Path, digest: str | None = None) -> Path:
    """The shard of one rank of equal parts in ``work``, written if it is not there, of another format, or does not go
    with the file that has the ``digest``.

    Raises:
        DiskSpaceError: it is not there, and there is no room for it.
    """
    rank, count = read_rank(rank_text)
    path = rank_path(model, rank, count, work)
    try:
        fits = digest in (None, open_shard(path).header.spec.digest)
    except ModelFileError:
        fits = False
    if not fits:
        write_rank(model, rank, (1.0,) * count, path, digest)
    return path


def run_alone(request: Request, popen: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen) -> Figures:
    """Measures in a process of its own, started by ``popen``; blocks.

    Raises:
        TpiError: it failed; its last words.
    """
    variables = module_variables()
    command = [sys.executable, "-m", "bench.streaming", msgspec.json.encode(request).decode()]
    process = popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    output, errors = process.communicate()
    if process.returncode:
        raise TpiError(f"the measured process failed: {last_words(errors)}")
    return msgspec.json.decode(output, type=Figures)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench window``."""
    parser = argparse.ArgumentParser(prog="bench window", description="Measure the window of weights of one rank.")
    parser.add_argument("--shape", default="llama-2-70b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--rank", default="3/8")
    parser.add_argument("--shard", type=Path, metavar="FILE", help="a shard to measure instead")
    parser.add_argument("--window", metavar="SIZE", default="64MB", help="bytes of weights in memory (default: 64MB)")
    parser.add_argument("--part", type=float, metavar="SHARE", help="instead of --window: this share of the shard")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--kv-type", type=str.upper, choices=KV_TYPES, default="F16", help="of the KV cache")
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--chunk", type=int, default=128, metavar="TOKENS", help="of the prompt in one pass")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sum-ms", type=float, default=0.0, help="how long every sum of the ranks takes (default: 0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    if given.part is not None and not 0 < given.part <= 1:
        raise UsageError(f"--part {given.part}: a share of the shard is above 0 and at most 1")
    report = Report("window")
    shard = given.shard
    if shard is None:
        model = RandomModel(find_shape(given.shape), given.quant)
        shard = find_rank(model, given.rank, given.work or find_folders().cache / "bench")
        report.add(shape=model.shape.name, quantisation=model.quantisation, rank=given.rank)
    request = Request(
        shard=str(shard),
        window_bytes=None if given.part is not None else parse_bytes(given.window, "--window"),
        window_part=given.part or 1.0,
        n_cells=given.context,
        n_prefill=given.prefill,
        chunk_tokens=given.chunk,
        n_threads=given.threads,
        n_pairs=given.pairs,
        sum_s=given.sum_ms / 1e3,
        kv_type=kv_type_of(given.kv_type, open_shard(shard).header.spec),
    )
    figures = run_alone(request)
    conditions = {"context": given.context, "kv_type": given.kv_type, "threads": given.threads}
    yield report.add(**msgspec.to_builtins(figures), **conditions)
