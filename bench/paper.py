"""The table of the TPI-LLM paper (arXiv 2410.00531), row by row, on emulated devices like its own.

    python -m bench paper --rows llama-2-7b,llama-2-70b

Eight devices, 300 Mbps, 1 ms one way. A model that this machine can hold as a whole runs on eight real devices, all
weights in memory. Of a larger one a single rank is real: as the master of a cluster whose seven workers stand in for
others (zeros over real links), and as a worker by itself whose sums take as long as measured on the emulated network.
There the weights stream through a window. Each row says what was measured and what was composed, beside the paper's
figures, which are for 32-bit weights on devices with eight cores. The paper does not say how long its prompts are; its
first tokens take hardly longer than the others, so they must be short. A row's files are removed when it is done.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.bounds import bound_s
from bench.cluster import ClusterFolder, Conditions, measure
from bench.computing import write_recording
from bench.models import RandomModel, write_gguf, write_rank
from bench.options import read_names
from bench.report import Report
from bench.shapes import find_shape, tensors_of
from bench.streaming import Request
from bench.sums import SumKind, measure_sums
from bench.testbed.testbed import Device, Testbed, require_emulation
from bench.window import run_alone
from tpi.cli.environment import find_folders
from tpi.config import parse_bytes
from tpi.observe import available_memory_bytes
from tpi.runtime.ggml.probe import probe_kernels

N_DEVICES = 8
_ALGORITHMS = ("star", "one-shot", "two-shot")
LATENCY_S, RATE_BPS = 0.001, 300e6
_WORKER = 3
_WORKER_PREFILL = 512
_USABLE_PART = 0.5
"""Of free memory and free disk: how much eight devices may take together."""


@dataclass(frozen=True)
class Published:
    """What the paper reports: seconds to the first token, seconds per token, peak memory of a device in GB."""

    first_token_s: float
    token_s: float
    peak_gb: float


@dataclass(frozen=True)
class Row:
    """A model of the table, with the paper's memory scheduler and without (None: out of memory)."""

    shape: str
    scheduled: Published
    unscheduled: Published | None = None


_ALL = (
    Row("llama-2-3b-like", Published(2.0, 1.9, 1.4), Published(2.3, 1.0, 2.8)),
    Row("llama-2-7b", Published(3.0, 2.6, 1.7), Published(3.1, 1.2, 4.5)),
    Row("llama-2-13b", Published(5.8, 2.9, 2.1), Published(5.1, 1.9, 8.1)),
    Row("llama-2-70b", Published(29.4, 26.1, 3.1)),
    Row("llama-3.1-8b", Published(4.5, 4.3, 5.4), Published(4.5, 1.5, 8.5)),
    Row("llama-3.1-70b", Published(32.9, 29.9, 11.3)),
    Row("yi-34b", Published(15.7, 13.7, 4.9)),
)
ROWS = {row.shape: row for row in _ALL}


class _Bench:
    """Measures rows the way that the arguments say, with files in ``work``."""

    def __init__(self, given: argparse.Namespace, work: Path) -> None:
        self._given, self._work = given, work
        self._window_bytes = parse_bytes(given.window, "--window")

    def row(self, row: Row) -> Report:
        """One row; blocks for minutes."""
        given = self._given
        model = RandomModel(find_shape(row.shape), given.quant)
        report = Report("paper").add(model=row.shape, quantisation=given.quant, prompt_tokens=given.prompt_tokens)
        if given.real or (not given.one_rank and self._fits(model)):
            figures = self._eight_devices(model)
        else:
            figures = {"worker_peak_rss_bytes": None, **self._one_rank(model)}
        report.add(**figures)
        return _add_published(report, row)

    def _sum_s(self, model: RandomModel) -> float:
        """What the fastest sum of one token takes on devices that do nothing else."""
        kinds = [SumKind(name, model.shape.n_embd) for name in _ALGORITHMS]
        with Testbed([Device()] * N_DEVICES, LATENCY_S, RATE_BPS) as bed:
            return min(entry.wall_s for entry in measure_sums(bed, kinds, n_rounds=self._given.sums).sums)

    def _eight_devices(self, model: RandomModel) -> dict[str, Any]:
        """Everything is real; every device has an equal part of this machine's cores, and its weights in memory."""
        with tempfile.TemporaryDirectory(dir=self._work, prefix="paper-") as folder:
            cluster = self._cluster(model, Path(folder), Device(self._given.cpu))
        return {
            **_times(cluster),
            "sums": cluster["sums"],
            "master_peak_rss_bytes": cluster["peak_rss_bytes"][0],
            "worker_peak_rss_bytes": max(cluster["peak_rss_bytes"][1:]),
            "cpu": self._given.cpu,
            "measured": f"everything, {N_DEVICES} real devices, weights resident",
            "composed": "nothing",
        }

    def _one_rank(self, model: RandomModel) -> dict[str, Any]:
        """A real worker with made-up sums, then a real master whose stand-ins contribute as late as that worker would;
        one shard on disk at a time."""
        given, sum_s = self._given, self._sum_s(model)
        with tempfile.TemporaryDirectory(dir=self._work, prefix="paper-") as folder:
            shard = write_rank(model, _WORKER, (1.0,) * N_DEVICES, Path(folder) / "shard.tpishard")
            request = Request(
                shard=str(shard.path),
                window_bytes=self._window_bytes,
                n_cells=given.context,
                n_prefill=min(_WORKER_PREFILL, given.context),
                n_threads=given.threads,
                n_pairs=given.pairs,
                sum_s=sum_s,
            )
            worker = run_alone(request)
            prompt = given.prompt_tokens
            reading = run_alone(
                msgspec.structs.replace(request, n_prefill=prompt, chunk_tokens=prompt, n_parts=2, n_pairs=1, sum_s=0.0)
            )
        with tempfile.TemporaryDirectory(dir=self._work, prefix="paper-") as folder:
            computing = write_recording(reading.computing, Path(folder) / "computing.json")
            cluster = self._cluster(model, Path(folder), Device(), computing=computing)
        n_sums = 2 * model.shape.n_layers
        prompt_bound_s = bound_s("two-shot", N_DEVICES, prompt * model.shape.n_embd * 2, LATENCY_S, RATE_BPS)
        first_bound_s = max(reading.bare_pass_s, reading.prefill_compute_s + n_sums * prompt_bound_s)
        return {
            **_times(cluster),
            "sums": cluster["sums"],
            "sum_ms": sum_s * 1e3,
            "first_token_over_bound": cluster["time_to_first_token_s"] / first_bound_s,
            "first_token_bound_s": first_bound_s,
            "prompt_disk_s": reading.bare_pass_s,
            "prompt_compute_s": reading.prefill_compute_s,
            "prompt_sums_bound_s": n_sums * prompt_bound_s,
            "master_peak_rss_bytes": cluster["peak_rss_bytes"][0] + worker.kv_bytes,
            "worker_peak_rss_bytes": worker.peak_rss_bytes,
            "worker_token_s": worker.token_s,
            "worker_compute_s": worker.compute_s,
            "worker_disk_bytes_per_s": worker.disk_bytes_per_s,
            "worker_streamed_bytes_per_token": worker.streamed_bytes_per_token,
            "context": given.context,
            "threads": given.threads,
            "measured": f"first_token_s, token_s: rank 0 of {N_DEVICES}, real links and sums, with 7 workers that add "
            f"zeros, as late as rank {_WORKER} would; worker_*: rank {_WORKER} alone, {request.n_prefill} tokens of "
            "prompt, all cells written",
            "composed": "worker_token_s has sums as long as sum_ms; worker_peak_rss_bytes lacks the links' buffers; "
            "master_peak_rss_bytes has the KV cache of all cells added",
        }

    def _cluster(
        self, model: RandomModel, folder: Path, device: Device, computing: Path | None = None
    ) -> dict[str, Any]:
        given, stand_ins = self._given, computing is not None
        path = write_gguf(model, folder / "model.gguf", hollow=True)
        conditions = Conditions(
            device=device,
            latency_s=LATENCY_S,
            rate_bps=RATE_BPS,
            n_threads=given.threads if stand_ins else 1,
            n_prompt_tokens=given.prompt_tokens,
            n_tokens=given.tokens,
            window=given.window if stand_ins else None,
            repack=not stand_ins,
            stand_ins=stand_ins,
            computing=computing,
            wire=given.wire,
            allreduce=given.allreduce,
        )
        report = measure(model, path, N_DEVICES, conditions, ClusterFolder(folder, self._work))
        figures: dict[str, Any] = json.loads(report.json())
        return figures

    def _fits(self, model: RandomModel) -> bool:
        n_bytes = sum(tensor.n_bytes for tensor in model.tensors)
        free = min(available_memory_bytes(), shutil.disk_usage(self._work).free)
        return n_bytes <= free * _USABLE_PART


def _times(cluster: dict[str, Any]) -> dict[str, float]:
    return {"first_token_s": cluster["time_to_first_token_s"], "token_s": 1 / cluster["decode_tokens_per_s"]}


def _add_published(report: Report, row: Row) -> Report:
    paper, resident = row.scheduled, row.unscheduled
    report.add(
        paper_first_token_s=paper.first_token_s, paper_token_s=paper.token_s, paper_peak_rss_bytes=paper.peak_gb * 1e9
    )
    if resident is None:
        return report.add(paper_unscheduled="out of memory")
    numbers = f"{resident.first_token_s} s, {resident.token_s} s per token, {resident.peak_gb} GB"
    return report.add(paper_unscheduled=numbers)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench paper``."""
    parser = argparse.ArgumentParser(prog="bench paper", description="Measure the rows of the paper's table.")
    parser.add_argument("--rows", default=",".join(ROWS), metavar="NAME,NAME,…", help="default: %(default)s")
    parser.add_argument("--quant", default="q4_0", help="the paper has 32-bit weights (default: q4_0)")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="default: 16")
    parser.add_argument("--tokens", type=int, default=8, help="of the answer")
    parser.add_argument("--cpu", type=float, default=0.2, metavar="CORES", help="quota of each of eight real devices")
    parser.add_argument("--window", default="64MB", metavar="SIZE", help="weights in memory of a rank that streams")
    parser.add_argument("--threads", type=int, default=1, help="of a rank that streams")
    parser.add_argument("--context", type=int, default=2048, help="cells of a rank that streams")
    parser.add_argument("--pairs", type=int, default=3, help="tokens of the worker that are measured")
    parser.add_argument("--sums", type=int, default=40, help="sums that are measured")
    parser.add_argument("--wire", default="f16", help="how partial sums travel (default: f16)")
    parser.add_argument("--allreduce", help="(default: what is measured to be fastest)")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--real", action="store_true", help="eight real devices, whatever the model's size")
    way.add_argument("--one-rank", action="store_true", help="one real rank, whatever the model's size")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    require_emulation()
    names = read_names("--rows", given.rows, ROWS)
    work: Path = given.work or find_folders().cache / "bench"
    work.mkdir(parents=True, exist_ok=True)
    kernels = probe_kernels(find_folders().cache)
    for name in names:
        kernels.require({tensor.type.name for tensor in tensors_of(find_shape(name), given.quant)})
    bench = _Bench(given, work)
    for name in names:
        yield bench.row(ROWS[name])
