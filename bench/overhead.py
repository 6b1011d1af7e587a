"""What the API costs the master beside the scheduler: processor time per token and per request, and memory.

The demo model on a master whose processor is limited and one worker: streams for many callers at once, short ones and
long ones, so that requests and tokens can be told apart. The API's thread tells its own processor time (``/metrics``).
Memory is compared where one answer at a time is computed, with the API and without.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.loopback import Loopback
from bench.report import Report
from bench.served import ServedCluster, real_worker
from bench.testbed.cgroups import DeviceGroup, Limits
from tpi.errors import LinkError

_OPTIONS = ("--threads", "1", "--bind", "127.0.0.1", "--port", "0", "--workers", "1")
_ANSWER_S = 600.0
_SHORT, _LONG = 2, 34
_SECONDS = re.compile(rb"^tpi:api_cpu_seconds_total{.*} (\S+)$", re.MULTILINE)
_TOKENS = re.compile(rb"^llamacpp:tokens_predicted_total (\S+)$", re.MULTILINE)
_WEB = b"pydantic_core"
"""Whoever has loaded the web server has this library mapped."""


@dataclass(frozen=True)
class Used:
    """Seconds of the processor that the API's thread and the whole master have used, wall time, tokens of answers."""

    api_s: float
    master_s: float
    wall_s: float
    n_tokens: float

    def since(self, before: "Used") -> "Used":
        return Used(
            self.api_s - before.api_s,
            self.master_s - before.master_s,
            self.wall_s - before.wall_s,
            self.n_tokens - before.n_tokens,
        )


class LimitedLoopback(Loopback):
    """Loopback, on which the processes of rank 0 share ``cpu`` cores; None: no limit."""

    def __init__(self, cpu: float | None) -> None:
        super().__init__()
        self._group = None if cpu is None else DeviceGroup("api", Limits(cpu=cpu))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._group is not None:
            self._group.close()

    def popen(
        self, rank: int, argv: Sequence[str], *, is_limited: bool = True, **options: Any
    ) -> subprocess.Popen[Any]:
        """See ``Loopback.popen``."""
        process = super().popen(rank, argv, is_limited=is_limited, **options)
        if rank == 0 and self._group is not None:
            for procs in self._group.procs:
                procs.write_text(str(process.pid))
        return process


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """Measures; yields one report."""
    parser = argparse.ArgumentParser(prog="python -m bench api", description=__doc__)
    parser.add_argument("--streams", type=int, default=20, help="callers at once")
    parser.add_argument("--cpu", type=float, default=0.4, help="cores of the master; 0: no limit, and no root")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with _cluster(folder, options.cpu, 0) as silent:
            for _ in range(3):
                silent.ask("Tell me a story about a fox.")
            silent_bytes = [_pss_bytes(process.pid) for process in silent.processes]
        with _cluster(folder, options.cpu, 1) as speaking:
            _round(speaking, options.streams, _LONG)
            spoken_bytes = [_pss_bytes(process.pid) for process in speaking.processes]
        cluster = stack.enter_context(_cluster(folder, options.cpu, options.streams))
        _round(cluster, options.streams, _LONG)
        rounds = [[_round(cluster, options.streams, n) for n in (_SHORT, _LONG)] for _ in range(options.rounds)]
        more = [long.since(short) for short, long in rounds]
        token_s = statistics.median(used.api_s / used.n_tokens for used in more)
        request_s = statistics.median(short.api_s - token_s * short.n_tokens for short, _ in rounds) / options.streams
        yield Report("api").add(
            streams=options.streams,
            cpu=options.cpu,
            api_cpu_ms_per_token=token_s * 1e3,
            api_cpu_ms_per_request=request_s * 1e3,
            master_cpu_ms_per_token=statistics.median(used.master_s / used.n_tokens for used in more) * 1e3,
            tokens_per_s=statistics.median(long.n_tokens / long.wall_s for _, long in rounds),
            master_mb=spoken_bytes[0] / 1e6,
            api_mb=(spoken_bytes[0] - silent_bytes[0]) / 1e6,
            worker_more_mb=(spoken_bytes[1] - silent_bytes[1]) / 1e6,
            worker_has_api=_WEB in Path(f"/proc/{cluster.processes[1].pid}/maps").read_bytes(),
        )


@contextlib.contextmanager
def _cluster(folder: Path, cpu: float, n_streams: int) -> Iterator[ServedCluster]:
    """``n_streams`` answers at once; 0: one, without the API."""
    with LimitedLoopback(cpu or None) as bed:
        variables = [{"TPI_HOME": str(folder / str(rank))} for rank in range(2)]
        workers = [real_worker("--threads", "1")]
        with ServedCluster(bed, ("demo", *_OPTIONS), workers, variables, n_parallel=n_streams) as cluster:
            yield cluster


def _round(cluster: ServedCluster, n_streams: int, n_tokens: int) -> Used:
    """A stream of so many tokens for everybody, at once."""
    failures = list[Exception]()

    def listen(number: int) -> None:
        try:
            _listen(cluster.api_port, number, n_tokens)
        except (OSError, http.client.HTTPException, LinkError) as error:
            failures.append(error)

    before = _used(cluster)
    threads = [threading.Thread(target=listen, args=(number,)) for number in range(n_streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise LinkError(f"the measured cluster failed: {failures[0]}")
    return _used(cluster).since(before)


def _listen(port: int, number: int, n_tokens: int) -> None:
    asked = {
        "messages": [{"role": "user", "content": f"Tell me story {number}."}],
        "max_tokens": n_tokens, "seed": number, "stream": True,
    }  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_S)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        told = response.read()
        if response.status != 200 or not told.endswith(b"data: [DONE]\n\n"):
            raise LinkError(f"a stream ended with {told[-200:]!r}")


def _used(cluster: ServedCluster) -> Used:
    connection = http.client.HTTPConnection("127.0.0.1", cluster.api_port, timeout=_ANSWER_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read()
    seconds, tokens = _SECONDS.search(text), _TOKENS.search(text)
    assert seconds is not None and tokens is not None
    fields = Path(f"/proc/{cluster.processes[0].pid}/stat").read_text().rpartition(")")[2].split()
    master_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Used(float(seconds[1]), master_s, time.perf_counter(), float(tokens[1]))


def _pss_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024
