"""A model larger than the memory of its only device, against llama.cpp with its mapped file under the same limit.

    python -m bench thrash --shape llama-2-7b --quant q4_0 --limit 2GiB --disk 500MB

Both have an emulated device of their own with the limit, and take turns; page cache counts towards it. llama.cpp keeps
its weights as they are in the file (repacked copies do not fit, and it would be killed). ``bound_tokens_per_s`` is what
the throttled disk allows for the bytes that this program's plan leaves on disk.
"""

import argparse
import functools
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.cluster import find_model
from bench.contender import Setup, Task, Took
from bench.contest import Contender
from bench.models import RandomModel
from bench.report import Report
from bench.shapes import SHAPES, find_shape
from bench.testbed.testbed import Device, Testbed
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.config import parse_bytes
from tpi.errors import UsageError
from tpi.gguf.reader import read_gguf
from tpi.runtime.ggml.probe import probe_kernels

_KINDS = ("tpi", "llama-plain")
_SLACK_BYTES = 16 << 20
"""Of the limit, what this program is not told of: the kernel counts page tables, files and sockets as well."""

_FIRST_WORD = 259


def _forget(path: Path) -> None:
    """Drops the file from the page cache: what is there already would count towards nobody's limit."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _compare(setups: Sequence[Setup], device: Device, n_vocab: int, given: argparse.Namespace) -> list[list[Took]]:
    chooser = random.Random(0)
    rounds = []
    _forget(Path(setups[0].model))
    with Testbed([device] * len(setups), disk=Path(setups[0].model).parent) as bed, ExitStack() as stack:
        sides = [
            stack.enter_context(Contender(setup, functools.partial(bed.popen, rank)))
            for rank, setup in enumerate(setups)
        ]
        for number in range(given.rounds + 1):
            prompt = [chooser.randrange(_FIRST_WORD, n_vocab - _FIRST_WORD) for _ in range(given.prompt_tokens)]
            took = [side.perform(Task([prompt], given.tokens if number else 1)) for side in sides]
            if number:
                rounds.append(took)
    return rounds


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench thrash``."""
    parser = argparse.ArgumentParser(prog="bench thrash", description="Measure a model that does not fit.")
    parser.add_argument("--shape", default="llama-2-7b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--limit", default="2GiB", metavar="SIZE", help="memory of each device (default: 2GiB)")
    parser.add_argument("--disk", metavar="SIZE", help="limit of reads per second (default: none)")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt-tokens", type=int, default=8, help="the fewer, the more memory holds weights")
    parser.add_argument("--tokens", type=int, default=8, help="per round")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    if given.prompt_tokens + given.tokens > given.context:
        raise UsageError(f"--context {given.context}: the prompt and {given.tokens} tokens do not fit")
    limit = parse_bytes(given.limit, "--limit")
    disk = parse_bytes(given.disk, "--disk") if given.disk else None
    model = RandomModel(find_shape(given.shape), given.quant)
    path, cache = find_model(model, given.work or find_folders().cache / "bench"), find_folders().cache
    probe_kernels(cache).require(sorted({tensor.type.name for tensor in read_gguf(path).tensors.values()}))
    setups = [
        Setup(kind, str(path), given.threads, given.context, str(cache), max(1, limit - _SLACK_BYTES))
        for kind in _KINDS
    ]
    rounds = _compare(setups, Device(memory_bytes=limit, disk_bytes_per_s=disk), model.shape.n_vocab, given)
    report = Report("thrash").add(shape=model.shape.name, quantisation=model.quantisation, limit_bytes=limit)
    streamed = statistics.median((row[0].streamed_bytes or 0) / given.tokens for row in rounds)
    for side, kind in enumerate(_KINDS):
        rate = given.tokens / statistics.median(row[side].decode_s for row in rounds)
        report.add(**{f"{kind.replace('-', '_')}_tokens_per_s": rate})
    yield report.add(
        rate_ratio=statistics.median(row[1].decode_s / row[0].decode_s for row in rounds),
        streamed_bytes_per_token=round(streamed),
        bound_tokens_per_s=disk / streamed if disk and streamed else None,
        disk_bytes_per_s=disk,
        peak_rss_bytes=max(row[0].peak_rss_bytes for row in rounds),
        context=given.context,
        written_cells=given.prompt_tokens + given.tokens,
        threads=given.threads,
    )
