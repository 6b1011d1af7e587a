"""One model on 1, 2, 4, … emulated devices: tokens per second, memory of every device, bytes on the wire.

    python -m bench cluster --devices 1,2,4 --cpu 0.4 --latency-ms 1 --mbps 300

Every device is a ``tpi serve`` or ``tpi join`` process with its slices on disk beforehand; with ``--stand-ins`` the
workers compute nothing, so that one rank of a large model runs with all its links. The wire is counted by the emulated
switch: IP packets with their headers. Random weights: the answers mean nothing, their speed does.

Where one device was measured as well, what more devices reach stands beside its figures and the bounds of
``bench.bounds``. ``--layouts`` compares arrangements of the same devices: ``tensor``, every layer cut among all;
``pipeline``, runs of layers, a device each; ``mixture``, runs of layers, each cut among two devices.
"""

import argparse
import dataclasses
import json
import random
import shutil
import statistics
import string
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from bench.bounds import compare
from bench.models import RandomModel, write_gguf, write_rank
from bench.options import read_counts, read_names
from bench.report import Report, Value
from bench.served import Bed, ServedAnswer, ServedCluster, real_worker, stand_in
from bench.shapes import SHAPES, find_shape
from bench.testbed.testbed import Device, SwitchStatistics, Testbed, require_emulation
from tpi.cli.environment import find_folders
from tpi.cluster.reports import ClusterStatus
from tpi.config import parse_bytes
from tpi.errors import UsageError
from tpi.gguf.reader import read_gguf
from tpi.observe import peak_resident_bytes
from tpi.runtime.ggml.probe import probe_kernels
from tpi.weights.identity import model_digest
from tpi.weights.shards.shard import Shard
from tpi.weights.shards.store import ShardStore

_PORT = "0"  # any
_WARM_UP_TOKENS = 8
_PLAIN_ROUNDS = 3
ARRANGEMENTS = ("tensor", "pipeline", "mixture")


@dataclass(frozen=True)
class Conditions:
    """What every device has, and how much is asked of them."""

    device: Device
    latency_s: float
    rate_bps: float
    n_threads: int
    n_prompt_tokens: int
    n_tokens: int
    memory: str | None = None
    n_answers: int = 1
    """Figures are medians over so many."""
    medium_bps: float = 0.0
    """One medium for all devices; 0: a port each."""
    jitter_s: float = 0.0
    wire: str = "f16"
    allreduce: str | None = None
    arrangement: str = "tensor"
    layout: str | None = None
    """Goes before the arrangement."""
    is_plain: bool = False
    """Data links without encryption, which the product does not have."""
    window: str | None = None
    context: int | None = None
    kv_type: str = "F16"
    repack: bool = True
    stand_ins: bool = False
    """Only the master is real; the model may be hollow."""
    computing: Path | None = None
    """How long those that stand in compute each block; None: not at all."""

    def common_options(self) -> list[str]:
        """Those of every ``tpi`` process."""
        options = ["--threads", str(self.n_threads)]
        options += ["--memory", self.memory] if self.memory else []
        options += ["--window", self.window] if self.window else []
        return options + ([] if self.repack else ["--no-repack"])

    def serve_options(self, model: Path, n_layers: int, bed: Bed, n_devices: int) -> list[str]:
        """Those of the master, which has an equal part and takes prompts as they are."""
        layout = self.layout or layout_of(self.arrangement, n_layers, n_devices)
        return [
            *(str(model), "--raw", "--workers", str(n_devices - 1), "--bind", bed.address(0), "--port", _PORT),
            *("--name", device_name(0), "--temperature", "0", "--wire", self.wire),
            *(["--layout", layout] if layout else ["--shares", ",".join("1" * n_devices)]),
            *(["--allreduce", self.allreduce] if self.allreduce else []),
            *("--max-tokens", str(self.n_tokens), "--context", str(_context(self)), "--kv-type", self.kv_type),
            *self.common_options(),
        ]


class ClusterFolder:
    """Files of one cluster: every device's state and shards; the kernels' cache is common to all."""

    def __init__(self, path: Path, cache: Path) -> None:
        self._path = path
        self._cache = cache

    def variables(self, rank: int) -> dict[str, str]:
        home = self._path / device_name(rank)
        return {
            "TPI_HOME": "",
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_DATA_HOME": str(home / "data"),
            "XDG_CACHE_HOME": str(self._cache),
            "XDG_RUNTIME_DIR": "",
        }

    def state(self, rank: int) -> Path:
        """Where a device that stands in keeps its certificate."""
        return Path(self.variables(rank)["XDG_STATE_HOME"])

    def shard(self, rank: int) -> Path:
        return self._path / f"rank-{rank}.tpishard"

    def write_shards(self, model: RandomModel, path: Path, n_ranks: int, *, only_master: bool = False) -> None:
        """Puts every rank's shard where its process finds it; they go with the file at ``path``."""
        digest = model_digest(read_gguf(path), self._cache / "tpi")
        for rank in range(1 if only_master else n_ranks if n_ranks > 1 else 0):
            shard = write_rank(model, rank, (1.0,) * n_ranks, self.shard(rank), digest)
            if rank == 0:
                shutil.move(shard.path, self.stored_path(shard))

    def stored_path(self, shard: Shard) -> Path:
        """Where the master looks for its shard; the folder is made."""
        store = ShardStore(Path(self.variables(0)["XDG_DATA_HOME"]) / "tpi" / "shards" / device_name(0))
        store.folder.mkdir(parents=True, exist_ok=True)
        return store.path_for(shard.header.spec.digest, 0, shard.pieces)


def layout_of(arrangement: str, n_layers: int, n_devices: int) -> str:
    """For ``--layout``; empty where every layer is cut among all."""
    if arrangement == "tensor" or n_devices == 1:
        return ""
    width = 1 if arrangement == "pipeline" else 2
    n_groups = n_devices // width
    starts = [number * n_layers // n_groups for number in range(n_groups + 1)]
    parts = []
    for number, (first, end) in enumerate(pairwise(starts)):
        ranks = range(number * width, n_devices if number == n_groups - 1 else (number + 1) * width)
        parts.append(f"{first}-{end - 1}:" + ",".join(f"{device_name(rank)}=1" for rank in ranks))
    return " ".join(parts)


def measure(model: RandomModel, path: Path, n_devices: int, conditions: Conditions, folder: ClusterFolder) -> Report:
    """One cluster of ``n_devices``; the model lies at ``path``, and may be hollow if there are several devices."""
    is_cut = conditions.layout is None and conditions.arrangement == "tensor"
    if is_cut:
        folder.write_shards(model, path, n_devices, only_master=conditions.stand_ins)
    report = Report("cluster").add(shape=model.shape.name, quantisation=model.quantisation, devices=n_devices)
    report.add(arrangement=conditions.layout or conditions.arrangement, wire=conditions.wire)
    with Testbed(
        [conditions.device] * n_devices,
        conditions.latency_s,
        conditions.rate_bps,
        medium_bps=conditions.medium_bps,
        jitter_s=conditions.jitter_s,
        disk=path.parent,
    ) as bed:
        serve = conditions.serve_options(path, model.shape.n_layers, bed, n_devices)
        shards = [folder.shard(rank) if is_cut else None for rank in range(n_devices)]
        workers = [
            stand_in(device_name(rank), folder.state(rank), conditions.computing)
            if conditions.stand_ins
            else real_worker(*join_options(rank, shards[rank], conditions))
            for rank in range(1, n_devices)
        ]
        variables = [folder.variables(rank) for rank in range(n_devices)]
        with ServedCluster(bed, serve, workers, variables, is_plain=conditions.is_plain) as cluster:
            cluster.ask(make_prompt(_WARM_UP_TOKENS, seed=1))
            before = cluster.status()
            throttled_s = bed.throttled_s()
            answers = [
                cluster.ask(make_prompt(conditions.n_prompt_tokens, seed=2 + number))
                for number in range(conditions.n_answers)
            ]
            throttled_s = tuple(b - a for a, b in zip(throttled_s, bed.throttled_s(), strict=True))
            after = cluster.status()
            real = cluster.processes[: 1 if conditions.stand_ins else None]
            peaks = [peak_resident_bytes(process.pid) for process in real]
            report.add(start_s=cluster.start.ready_s, sums=cluster.start.sums)
    way = after.choice.few.algorithm if after.choice is not None else None
    _add_answers(report, answers).add(algorithm=way, throttled_s=list(throttled_s), **_split(before, after))
    return report.add(
        peak_rss_bytes=list(peaks),
        cpu=conditions.device.cpu,
        threads=conditions.n_threads,
        latency_ms=conditions.latency_s * 1e3,
        mbps=(conditions.medium_bps or conditions.rate_bps) / 1e6,
    )


def _split(before: ClusterStatus, after: ClusterStatus) -> dict[str, list[Value]]:
    """What each rank spent its time with while all answers were made, seconds: waiting for its disk, computing, in
    sums; of stand-ins zeros."""
    pairs = [(old, new) for old in before.ranks for new in after.ranks if old.rank == new.rank]
    return {
        "disk_wait_s": [new.hold_s - old.hold_s for old, new in pairs],
        "compute_s": [new.compute_s - old.compute_s for old, new in pairs],
        "sum_wait_s": [new.allreduce_s - old.allreduce_s for old, new in pairs],
    }


def device_name(rank: int) -> str:
    """What the device is called."""
    return f"device-{rank}"


def join_options(rank: int, shard: Path | None, conditions: Conditions) -> list[str]:
    """Those of a worker that brings its shard, if there is one."""
    shard_options = ["--shard", str(shard)] if shard is not None else []
    return ["--name", device_name(rank), *shard_options, *conditions.common_options()]


def _add_answers(report: Report, answers: Sequence[ServedAnswer]) -> Report:
    """Medians of the answers' times; bytes of the last; processor time of all."""
    last = answers[-1]
    n_decoded = last.n_tokens - 1
    decode_bytes = _sent(last.total) - _sent(last.prefill)
    decode_s = statistics.median(answer.decode_s for answer in answers)
    first_s = statistics.median(answer.first_s for answer in answers)
    cpu_s = np.sum([answer.cpu_s for answer in answers], axis=0)
    return report.add(
        decode_tokens_per_s=n_decoded / decode_s if decode_s else None,
        prefill_tokens_per_s=last.n_prompt_tokens / first_s,
        time_to_first_token_s=first_s,
        decode_wire_bytes_per_token=round(decode_bytes / n_decoded) if n_decoded else None,
        prefill_wire_bytes_per_token=round(_sent(last.prefill) / last.n_prompt_tokens),
        prompt_tokens=last.n_prompt_tokens,
        tokens=last.n_tokens,
        answers=len(answers),
        wall_s=sum(answer.wall_s for answer in answers),
        cpu_s=cpu_s.tolist(),
        switch_late_p99_ms=last.total.late_p99_s * 1e3,
    )


def _sent(statistics: SwitchStatistics) -> int:
    return sum(device.sent_bytes for device in statistics.devices)


def _context(conditions: Conditions) -> int:
    if conditions.context is not None:
        return conditions.context
    return 2 * (conditions.n_prompt_tokens + conditions.n_tokens + _WARM_UP_TOKENS)


def make_prompt(n_tokens: int, seed: int) -> str:
    """A text of ``n_tokens`` tokens, the one at its beginning included: words of two letters, one token each."""
    chooser = random.Random(seed)
    return " ".join("".join(chooser.choices(string.ascii_lowercase, k=2)) for _ in range(n_tokens - 1))


def _read_conditions(given: argparse.Namespace) -> Conditions:
    return Conditions(
        device=Device(given.cpu, parse_bytes(given.limit, "--limit") if given.limit else None),
        latency_s=given.latency_ms / 1e3,
        rate_bps=given.mbps * 1e6,
        medium_bps=given.medium_mbps * 1e6,
        jitter_s=given.jitter_ms / 1e3,
        n_answers=given.answers,
        n_threads=given.threads,
        n_prompt_tokens=given.prompt_tokens,
        n_tokens=given.tokens,
        memory=given.memory,
        allreduce=given.allreduce,
        layout=given.layout,
        window=given.window,
        context=given.context,
        repack=not given.no_repack,
        stand_ins=given.stand_ins,
    )


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench cluster``."""
    parser = argparse.ArgumentParser(prog="bench cluster", description="Measure clusters of emulated devices.")
    parser.add_argument("--devices", default="1,2,4", metavar="N,N,…")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--cpu", type=float, default=0.4, metavar="CORES", help="quota of each device (default: 0.4)")
    parser.add_argument("--limit", metavar="SIZE", help="what the kernel allows each device, page cache included")
    parser.add_argument("--memory", metavar="SIZE", help="--memory of each tpi process")
    parser.add_argument("--window", metavar="SIZE", help="--window of each tpi process")
    parser.add_argument("--context", type=int, help="--context of the master (default: what is used)")
    parser.add_argument("--no-repack", action="store_true")
    parser.add_argument("--stand-ins", action="store_true", help="workers that compute nothing, and need no disk")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--latency-ms", type=float, default=1.0)
    parser.add_argument("--mbps", type=float, default=300.0)
    parser.add_argument("--medium-mbps", type=float, default=0.0, help="one medium for all instead of a port each")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="packets are up to so much earlier or later")
    parser.add_argument("--answers", type=int, default=1, help="figures are medians of so many (default: 1)")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--wire", default="f16", metavar="TYPE,…", help="how partial sums travel (default: f16)")
    parser.add_argument("--allreduce", help="(default: what is measured to be fastest)")
    parser.add_argument("--layouts", default="tensor", metavar="NAME,…", help=f"of {', '.join(ARRANGEMENTS)}")
    parser.add_argument("--layout", help="one of your own, as `tpi serve --layout` takes it")
    parser.add_argument("--plain", action="store_true", help="in turns with links that are not encrypted")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    require_emulation()
    counts = read_counts("--devices", given.devices)
    work: Path = given.work or find_folders().cache / "bench"
    model = RandomModel(find_shape(given.shape), given.quant)
    if given.stand_ins and 1 in counts:
        raise UsageError("--stand-ins stand for workers: --devices must be 2 or more")
    path = find_model(model, work, hollow=given.stand_ins)
    probe_kernels(work / "tpi").require(sorted({tensor.type.name for tensor in read_gguf(path).tensors.values()}))
    plains = (False, True) * _PLAIN_ROUNDS if given.plain else (False,)
    arrangements, wires = read_names("--layouts", given.layouts, ARRANGEMENTS), given.wire.split(",")
    base, one = _read_conditions(given), None
    for count in counts:
        ways = [(arrangement, wire, is_plain) for arrangement in arrangements for wire in wires for is_plain in plains]
        rates: dict[bool, list[float]] = {False: [], True: []}
        for arrangement, wire, is_plain in ways if count > 1 else ways[:1]:
            conditions = dataclasses.replace(base, arrangement=arrangement, wire=wire, is_plain=is_plain)
            with tempfile.TemporaryDirectory(dir=work, prefix="cluster-") as folder:
                report = measure(model, path, count, conditions, ClusterFolder(Path(folder), work))
            figures = json.loads(report.json())
            one = figures if count == 1 else one
            if one is not None and count > 1:
                report.add(**compare(one, figures, model.shape, is_cut=arrangement == "tensor" and not given.layout))
            rates[is_plain].append(figures["decode_tokens_per_s"])
            if len(rates[True]) == _PLAIN_ROUNDS:
                ratio = statistics.median(rates[True]) / statistics.median(rates[False])
                report.add(encrypted_over_plain=ratio)
            yield report.add(is_plain=is_plain)


def find_model(model: RandomModel, work: Path, *, hollow: bool = False) -> Path:
    """The whole model in ``work``, or a hollow one, written if it is not there."""
    path = work / f"{model.shape.name}-{model.quantisation}-{model.seed}{'-hollow' if hollow else ''}.gguf"
    if not path.exists():
        write_gguf(model, path.with_suffix(".part"), hollow=hollow).replace(path)
    return path
