"""One device that serves several callers at once, against llama.cpp's own server with as many slots.

    python -m bench servers --shape tinyllama-1.1b --quant q4_0 --threads 2 --callers 1,8,16

Both are asked over HTTP, in turns: so many completions at once, of prompts that share no beginning, each of the same
number of tokens, streamed. A rate is all tokens of the answers by the time from asking to the last end. The ratio is
ours divided by llama.cpp's, a median over rounds.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.callers import ask_crowd
from bench.cluster import find_model, make_prompt
from bench.llamaserver import LlamaServer, obtain_server
from bench.loopback import Loopback
from bench.models import RandomModel
from bench.report import Report
from bench.served import ServedCluster
from bench.shapes import SHAPES, find_shape
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.observe import peak_resident_bytes

_TEMPLATE_CELLS = 32


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench servers``."""
    parser = argparse.ArgumentParser(prog="bench servers", description="Serve many callers, beside llama.cpp's server.")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--callers", default="1,8,16", metavar="N,N,…", help="at once (default: 1,8,16)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    cache = find_folders().cache
    program = obtain_server(cache, lambda text: print(text, file=sys.stderr, flush=True))
    model = RandomModel(find_shape(given.shape), given.quant)
    path = find_model(model, given.work or cache / "bench")
    for n_callers in map(int, given.callers.split(",")):
        n_cells = -(-(given.prompt_tokens + given.tokens + _TEMPLATE_CELLS) // 32) * 32
        # fmt: off
        serve = (
            str(path), "--workers", "0", "--threads", str(given.threads), "--context", str(n_cells * n_callers),
            "--port", "0", "--any-model",
        )
        # fmt: on
        with (
            Loopback() as bed,
            ServedCluster(bed, serve, (), ({},), n_parallel=n_callers) as ours,
            LlamaServer(program, path, given.threads, n_callers, n_cells) as theirs,
        ):
            rounds = []
            for number in range(given.rounds + 1):
                prompts = [make_prompt(given.prompt_tokens, number * n_callers + i) for i in range(n_callers)]
                ports = ours.api_port, theirs.port
                rates = [ask_crowd(port, prompts, given.tokens).tokens_per_s for port in ports]
                rounds += [rates] if number else []  # the first warms up
            report = Report("servers").add(shape=model.shape.name, quantisation=model.quantisation)
            report.add(threads=given.threads, callers=n_callers, prompt_tokens=given.prompt_tokens, tokens=given.tokens)
            yield report.add(
                tpi_tokens_per_s=statistics.median(ours for ours, _ in rounds),
                llama_tokens_per_s=statistics.median(theirs for _, theirs in rounds),
                rate_ratio=statistics.median(ours / theirs for ours, theirs in rounds),
                peak_rss_bytes=peak_resident_bytes(ours.processes[0].pid),
            )
