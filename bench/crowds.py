"""Several callers of a cluster of emulated devices at once, against one caller and against the bound.

    python -m bench crowds --devices 1,4 --callers 1,8,16 --cpu 0.4

A rate is that of all answers together while all of them grow. Where one device was measured as well, with as many
callers, the bound of a pass is what it took there ÷ N and its sums of so many rows (``bench.bounds``).
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.bounds import sums_bound_s
from bench.cluster import ClusterFolder, Conditions, find_model, join_options, make_prompt
from bench.models import RandomModel
from bench.options import read_counts
from bench.report import Report
from bench.served import ServedCluster, real_worker
from bench.shapes import SHAPES, find_shape
from bench.testbed.testbed import Device, Testbed, require_emulation
from tpi.cli.environment import find_folders


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench crowds``."""
    parser = argparse.ArgumentParser(prog="bench crowds", description="Serve many callers on emulated devices.")
    parser.add_argument("--devices", default="1,4", metavar="N,N,…")
    parser.add_argument("--callers", default="1,8,16", metavar="N,N,…", help="at once (default: 1,8,16)")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--cpu", type=float, default=0.4, metavar="CORES", help="quota of each device (default: 0.4)")
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--mbps", type=float, default=300.0)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    require_emulation()
    work: Path = given.work or find_folders().cache / "bench"
    model = RandomModel(find_shape(given.shape), given.quant)
    path = find_model(model, work)
    counts = read_counts("--callers", given.callers)
    conditions = Conditions(
        device=Device(given.cpu),
        latency_s=given.latency_ms / 1e3,
        rate_bps=given.mbps * 1e6,
        n_threads=1,
        n_prompt_tokens=given.prompt_tokens,
        n_tokens=given.tokens,
        context=max(counts) * (-(-(given.prompt_tokens + given.tokens) // 32) * 32 + 32),
    )
    one_device: dict[int, float] = {}
    for n_devices in read_counts("--devices", given.devices):
        with tempfile.TemporaryDirectory(dir=work, prefix="crowds-") as folder:
            yield from _measure(
                model, path, n_devices, counts, conditions, ClusterFolder(Path(folder), work), one_device
            )


def _measure(
    model: RandomModel,
    path: Path,
    n_devices: int,
    counts: Sequence[int],
    conditions: Conditions,
    folder: ClusterFolder,
    one_device: dict[int, float],
) -> Iterator[Report]:
    """One cluster, for each number of callers. ``one_device`` is what a pass takes there, by callers: is filled by one
    device, and read by more."""
    folder.write_shards(model, path, n_devices)
    devices = [conditions.device] * n_devices
    with Testbed(devices, conditions.latency_s, conditions.rate_bps, disk=path.parent) as bed:
        serve = conditions.serve_options(path, model.shape.n_layers, bed, n_devices)
        workers = [real_worker(*join_options(rank, folder.shard(rank), conditions)) for rank in range(1, n_devices)]
        variables = [folder.variables(rank) for rank in range(n_devices)]
        with ServedCluster(bed, serve, workers, variables, n_parallel=max(counts)) as cluster:
            cluster.ask_many([make_prompt(conditions.n_prompt_tokens, seed=1)], conditions.n_tokens)
            one_s = 0.0
            for n_callers in counts:
                prompts = [make_prompt(conditions.n_prompt_tokens, 1000 * n_callers + i) for i in range(n_callers)]
                rate = cluster.ask_many(prompts, conditions.n_tokens).growing_tokens_per_s
                pass_s = n_callers / rate
                one_s = one_s or pass_s
                report = Report("crowds").add(shape=model.shape.name, quantisation=model.quantisation)
                report.add(devices=n_devices, callers=n_callers, tokens_per_s=rate)
                report.add(over_one_caller=rate * one_s / counts[0], pass_ms=pass_s * 1e3, cpu=conditions.device.cpu)
                if n_devices == 1:
                    one_device[n_callers] = pass_s
                elif n_callers in one_device:
                    row_bytes = n_callers * model.shape.n_embd * 2
                    link = conditions.latency_s, conditions.rate_bps
                    sums_s = 2 * model.shape.n_layers * sums_bound_s(n_devices, row_bytes, *link)
                    bound_s = one_device[n_callers] / n_devices + sums_s
                    report.add(over_one_device=one_device[n_callers] / pass_s, bound_ms=bound_s * 1e3)
                    report.add(pass_over_bound=pass_s / bound_s)
                yield report.add(latency_ms=conditions.latency_s * 1e3, mbps=conditions.rate_bps / 1e6)
