"""A real master and one real worker of a large model, the other devices computing nothing: memory and loading.

    python -m bench rank --shape llama-2-70b --quant q4_0 --kv-type F16 --devices 8 --worker 3

Both are processes as people start them, ``tpi serve`` and ``tpi join --shard``, with shards of their own in place, and
stream their weights through a window. The prompt and its answer write every cell of the KV cache, unless ``--prefill``
asks for a shorter one. Peaks are the kernel's, at the end. The cluster is started twice and the second start is timed:
nothing is left to be tried then. What it answers means nothing, and its speed is that of two ranks of one machine.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.cluster import ClusterFolder, Conditions, device_name, find_model, join_options, make_prompt
from bench.loopback import Loopback
from bench.models import RandomModel
from bench.report import Report
from bench.served import ServedAnswer, ServedCluster, Start, Worker, real_worker, stand_in
from bench.shapes import SHAPES, find_shape, tensors_of
from bench.testbed.testbed import MAX_DEVICES, Device, Testbed, require_emulation
from bench.window import find_rank, rank_path
from tpi.cli.environment import find_folders
from tpi.cluster.epoch.plancheck import KV_TYPES
from tpi.errors import DiskSpaceError, UsageError
from tpi.gguf.reader import read_gguf
from tpi.observe import peak_resident_bytes
from tpi.runtime.ggml.probe import probe_kernels
from tpi.weights.identity import model_digest
from tpi.weights.shards.shard import open_shard

_OWN_TOKENS = 16
"""Of prompts that are alike."""
_ANSWER_CELLS = 8
"""What the longest prompt leaves of the context for its answer."""


@dataclass(frozen=True)
class Ranks:
    """How many devices there are, and which of the workers is real; None: only the master."""

    n_devices: int
    worker: int | None

    @property
    def real(self) -> list[int]:
        return [0] if self.worker is None else [0, self.worker]


@dataclass(frozen=True)
class Measured:
    """The second start, the answer, and the peak of every real rank in bytes."""

    start: Start
    answer: ServedAnswer
    peaks: dict[int, int]


@dataclass(frozen=True)
class Crowd:
    """Tokens per second of one sequence, and of several at once, all together."""

    n_sequences: int
    one: float
    all: float
    peaks: dict[int, int]


def measure(model: RandomModel, ranks: Ranks, conditions: Conditions, work: Path) -> Measured:
    """Writes what ``work`` lacks, starts the cluster twice and asks it once; blocks for minutes.

    Raises:
        DiskSpaceError: the shards do not fit.
        LinkError: the cluster failed; its last words.
    """
    with _prepared(model, ranks, conditions, work) as start:
        start(0).close()
        with start(0) as cluster:
            answer = cluster.ask(make_prompt(conditions.n_prompt_tokens, seed=2))
            return Measured(cluster.start, answer, _peaks(cluster, ranks))


def measure_crowd(
    model: RandomModel, ranks: Ranks, conditions: Conditions, work: Path, n_sequences: int, *, are_alike: bool = False
) -> Crowd:
    """The same for several at once, after one alone. ``are_alike``: prompts have all but their last words in common,
    so that these alone are read of all but the first."""
    with _prepared(model, ranks, conditions, work) as start, start(n_sequences) as cluster:
        n_own = min(_OWN_TOKENS, conditions.n_prompt_tokens - 2) if are_alike else conditions.n_prompt_tokens
        common = make_prompt(conditions.n_prompt_tokens - n_own + 1, seed=0) if are_alike else ""
        prompts = [f"{common} {make_prompt(n_own, seed)}".strip() for seed in range(1, n_sequences + 2)]
        one = cluster.ask_many(prompts[:1], conditions.n_tokens).growing_tokens_per_s
        many = cluster.ask_many(prompts[1:], conditions.n_tokens).growing_tokens_per_s
        return Crowd(n_sequences, one, many, _peaks(cluster, ranks))


def _peaks(cluster: ServedCluster, ranks: Ranks) -> dict[int, int]:
    return {rank: peak_resident_bytes(cluster.processes[rank].pid) for rank in ranks.real}


@contextlib.contextmanager
def _prepared(
    model: RandomModel, ranks: Ranks, conditions: Conditions, work: Path
) -> Iterator[Callable[[int], ServedCluster]]:
    """What starts the cluster, for so many answers at once, 0 through standard input; all files are written."""
    _require_room(model, ranks, work)
    path = find_model(model, work, hollow=True)
    digest = model_digest(read_gguf(path), work / "tpi")
    shards = {rank: find_rank(model, f"{rank}/{ranks.n_devices}", work, digest) for rank in ranks.real}
    devices = [conditions.device] * ranks.n_devices
    with (
        tempfile.TemporaryDirectory(dir=work, prefix="rank-") as name,
        Testbed(devices, conditions.latency_s, conditions.rate_bps) if conditions.rate_bps else Loopback() as bed,
    ):
        folder = ClusterFolder(Path(name), work)
        os.link(shards[0], folder.stored_path(open_shard(shards[0])))

        def start(n_parallel: int) -> ServedCluster:
            workers: list[Worker] = []
            for rank in range(1, ranks.n_devices):
                is_real = rank == ranks.worker
                options = join_options(rank, shards[rank], conditions) if is_real else []
                workers.append(real_worker(*options) if is_real else stand_in(device_name(rank), folder.state(rank)))
            variables = [folder.variables(rank) for rank in range(ranks.n_devices)]
            serve = conditions.serve_options(path, model.shape.n_layers, bed, ranks.n_devices)
            return ServedCluster(bed, serve, workers, variables, n_parallel=n_parallel)

        yield start


def _require_room(model: RandomModel, ranks: Ranks, work: Path) -> None:
    """For all shards that are to be written, before the first one is."""
    n_missing = sum(not rank_path(model, rank, ranks.n_devices, work).exists() for rank in ranks.real)
    needed = n_missing * sum(tensor.n_bytes for tensor in model.tensors) // ranks.n_devices
    free = shutil.disk_usage(work).free
    if needed > free:
        raise DiskSpaceError(
            f"{work} has room for {free / 1e9:.1f} GB, {n_missing} shards of {model.shape.name} in "
            f"{model.quantisation} take {needed / 1e9:.1f} GB: free some, or choose another folder with --work"
        )


def _report(model: RandomModel, ranks: Ranks, conditions: Conditions, measured: Measured) -> Report:
    start, answer = measured.start, measured.answer
    is_emulated = conditions.rate_bps > 0
    who = " and ".join(f"rank {rank}" for rank in ranks.real)
    return Report("rank").add(
        shape=model.shape.name,
        quantisation=model.quantisation,
        kv_type=conditions.kv_type,
        devices=ranks.n_devices,
        worker=ranks.worker,
        master_peak_rss_bytes=measured.peaks[0],
        worker_peak_rss_bytes=measured.peaks[ranks.worker] if ranks.worker is not None else None,
        context=conditions.context,
        written_cells=answer.n_prompt_tokens + answer.n_tokens - 1,
        load_s=start.ready_s,
        joining_s=start.joined_s - start.listening_s,
        prompt_tokens=answer.n_prompt_tokens,
        tokens=answer.n_tokens,
        time_to_first_token_s=answer.first_s,
        decode_tokens_per_s=(answer.n_tokens - 1) / answer.decode_s if answer.n_tokens > 1 else None,
        window=conditions.window,
        memory=conditions.memory,
        threads=conditions.n_threads,
        repack=conditions.repack,
        latency_ms=conditions.latency_s * 1e3 if is_emulated else None,
        mbps=conditions.rate_bps / 1e6 if is_emulated else None,
        measured=f"real: {who} of {ranks.n_devices}, the others add zeros; load_s: from the start of `tpi serve` to "
        "`ready`, the second time, shards in place, joining_s of it spent until all had joined",
    )


def _read_conditions(given: argparse.Namespace) -> Conditions:
    is_full = given.prefill is None
    n_prompt = given.context - _ANSWER_CELLS if is_full else given.prefill
    if n_prompt < 2:
        raise UsageError(f"a prompt of {n_prompt} tokens: --prefill must be 2 or more, --context {_ANSWER_CELLS} more")
    if not is_full and not 1 <= given.tokens <= given.context - n_prompt + 1:
        raise UsageError(f"--context {given.context} must have room for --prefill {n_prompt} and --tokens, 1 or more")
    return Conditions(
        device=Device(),
        latency_s=given.latency_ms / 1e3,
        rate_bps=(given.mbps or 0.0) * 1e6,
        n_threads=given.threads,
        n_prompt_tokens=n_prompt,
        n_tokens=given.context if is_full else given.tokens,
        memory=given.memory,
        window=given.window,
        context=given.context,
        kv_type=given.kv_type,
        repack=given.repack,
    )


def _read_ranks(given: argparse.Namespace) -> Ranks:
    if not 2 <= given.devices <= MAX_DEVICES:
        raise UsageError(f"--devices {given.devices}: 2 to {MAX_DEVICES}")
    if given.no_worker:
        return Ranks(given.devices, None)
    if not 1 <= given.worker < given.devices:
        raise UsageError(
            f"--worker {given.worker}: of {given.devices} devices the workers are 1 to {given.devices - 1}"
        )
    return Ranks(given.devices, given.worker)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench rank``."""
    parser = argparse.ArgumentParser(prog="bench rank", description="Measure a master and one worker of a large model.")
    parser.add_argument("--shape", default="llama-2-70b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--kv-type", type=str.upper, choices=KV_TYPES, default="F16", help="of the KV cache")
    parser.add_argument("--devices", type=int, default=8, metavar="N", help="with equal parts (default: 8)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--worker", type=int, default=3, metavar="RANK", help="the one that is real (default: 3)")
    which.add_argument("--no-worker", action="store_true", help="only the master is real")
    parser.add_argument("--context", type=int, default=2048, metavar="CELLS")
    parser.add_argument(
        "--prefill", type=int, metavar="TOKENS", help="of the prompt (default: it and its answer fill the context)"
    )
    parser.add_argument("--tokens", type=int, default=8, help="of the answer, with --prefill (default: 8)")
    parser.add_argument(
        "--sequences", type=int, default=1, metavar="N", help="that many at once ÷ one, with --prefill and --tokens"
    )
    parser.add_argument("--alike", action="store_true", help="prompts of --sequences differ in their last words")
    parser.add_argument("--window", default="64MB", metavar="SIZE", help="weights in memory (default: 64MB)")
    parser.add_argument("--memory", metavar="SIZE", help="--memory of both tpi processes")
    parser.add_argument("--threads", type=int, default=1, help="of each (default: 1)")
    parser.add_argument(
        "--repack", action=argparse.BooleanOptionalAction, default=False, help="rearrange the shards (default: no)"
    )
    parser.add_argument("--mbps", type=float, help="of an emulated network, which needs root (default: loopback)")
    parser.add_argument("--latency-ms", type=float, default=1.0, help="of the emulated network (default: 1)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    ranks, conditions = _read_ranks(given), _read_conditions(given)
    if given.mbps:
        require_emulation()
    work: Path = (given.work or find_folders().cache / "bench").absolute()
    work.mkdir(parents=True, exist_ok=True)
    model = RandomModel(find_shape(given.shape), given.quant)
    types = {tensor.type.name for tensor in tensors_of(model.shape, model.quantisation)}
    probe_kernels(work / "tpi").require(types, given.kv_type)
    if given.sequences > 1:
        crowd = measure_crowd(model, ranks, conditions, work, given.sequences, are_alike=given.alike)
        yield Report("rank").add(
            shape=model.shape.name,
            quantisation=model.quantisation,
            kv_type=conditions.kv_type,
            devices=ranks.n_devices,
            worker=ranks.worker,
            sequences=crowd.n_sequences,
            cells_each=conditions.n_prompt_tokens + conditions.n_tokens,
            one_tokens_per_s=crowd.one,
            all_tokens_per_s=crowd.all,
            ratio=crowd.all / crowd.one,
            master_peak_rss_bytes=crowd.peaks[0],
            worker_peak_rss_bytes=crowd.peaks[ranks.worker] if ranks.worker is not None else None,
        )
        return
    yield _report(model, ranks, conditions, measure(model, ranks, conditions, work))
