"""Decode, prefill and many sequences at once on one device against llama.cpp: same file, same threads, its repacking on
and off, in turns.

    python -m bench decode --shape tinyllama-1.1b --quant q4_0 --threads 2
    python -m bench prefill --shape tinyllama-1.1b --quant q4_0 --threads 2
    python -m bench many --shape tinyllama-1.1b --quant q4_0 --threads 2 --sequences 1,8,16

Ratios are our rate divided by llama.cpp's, medians over rounds in which every side had one task. The three processes
are loaded all the time; only one works at a time.
"""

import argparse
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
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.gguf.reader import read_gguf
from tpi.runtime.ggml.probe import probe_kernels

KINDS = ("tpi", "llama", "llama-plain")
_FIRST_WORD = 259


def _compare(setups: Sequence[Setup], n_vocab: int, n_prompt: int, n_tokens: int, n_rounds: int) -> list[list[Took]]:
    """What each side took, by round; a first round that warms up is left out."""
    chooser, n_sequences = random.Random(0), setups[0].n_sequences
    rounds = []
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(setup)) for setup in setups]
        for number in range(n_rounds + 1):
            prompts = [
                [chooser.randrange(_FIRST_WORD, n_vocab - _FIRST_WORD) for _ in range(n_prompt)]
                for _ in range(n_sequences)
            ]
            took = [contender.perform(Task(prompts, n_tokens)) for contender in contenders]
            if number:
                rounds.append(took)
    return rounds


def _measure(
    what: str, arguments: Sequence[str], n_prompt: int, n_tokens: int, sequences: str = "1"
) -> Iterator[Report]:
    parser = argparse.ArgumentParser(prog=f"bench {what}", description=f"Measure {what} against llama.cpp.")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=n_prompt)
    parser.add_argument("--tokens", type=int, default=n_tokens)
    if what == "many":
        parser.add_argument("--sequences", default=sequences, metavar="N,N,…", help=f"at once (default: {sequences})")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    work: Path = given.work or find_folders().cache / "bench"
    model = RandomModel(find_shape(given.shape), given.quant)
    path = find_model(model, work)
    cache = find_folders().cache
    probe_kernels(cache).require(sorted({tensor.type.name for tensor in read_gguf(path).tensors.values()}))
    for n in map(int, (given.sequences if what == "many" else sequences).split(",")):
        step = 256 if n == 1 else 32
        n_cells = -(-(given.prompt_tokens + given.tokens + 1) // step) * step
        setups = [Setup(kind, str(path), given.threads, n_cells, str(cache), n_sequences=n) for kind in KINDS]
        rounds = _compare(setups, model.shape.n_vocab, given.prompt_tokens, given.tokens, given.rounds)
        report = Report(what).add(shape=model.shape.name, quantisation=model.quantisation, threads=given.threads)
        report.add(sequences=n, prompt_tokens=given.prompt_tokens, tokens=given.tokens)
        yield _add_rates(report, what, rounds, given.prompt_tokens if what == "prefill" else given.tokens * n)


def _add_rates(report: Report, what: str, rounds: Sequence[Sequence[Took]], count: int) -> Report:
    seconds = [
        [took.prefill_s if what == "prefill" else took.decode_s for took in took_by_side] for took_by_side in rounds
    ]
    for side, kind in enumerate(KINDS):
        rate = count / statistics.median(row[side] for row in seconds)
        report.add(**{f"{kind.replace('-', '_')}_tokens_per_s": rate})
    report.add(
        rate_ratio=statistics.median(row[1] / row[0] for row in seconds),
        plain_rate_ratio=statistics.median(row[2] / row[0] for row in seconds),
        peak_rss_bytes=max(row[0].peak_rss_bytes for row in rounds),
        llama_peak_rss_bytes=max(row[1].peak_rss_bytes for row in rounds),
        peak_rss_ratio=max(row[0].peak_rss_bytes for row in rounds) / max(row[1].peak_rss_bytes for row in rounds),
        anonymous_bytes=max(row[0].anonymous_bytes for row in rounds),
        llama_anonymous_bytes=max(row[1].anonymous_bytes for row in rounds),
    )
    shares = [1 - row[0].compute_s / row[0].decode_s for row in rounds if row[0].compute_s is not None]
    return report.add(outside_kernels_share=statistics.median(shares)) if what != "prefill" else report


def decode(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench decode``: one token after the other behind a short prompt."""
    yield from _measure("decode", arguments, n_prompt=16, n_tokens=64)


def prefill(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench prefill``: a prompt of 256 tokens."""
    yield from _measure("prefill", arguments, n_prompt=256, n_tokens=0)


def many(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench many``: several sequences, a token of each in every pass."""
    yield from _measure("many", arguments, n_prompt=63, n_tokens=64, sequences="1,8,16")
