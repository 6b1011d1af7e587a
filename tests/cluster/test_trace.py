"""Traces of real processes: everything is there, bytes leave at once, and clocks that are off are put right."""

import json
import os
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.commands import Home, find_key

PROMPT = "Tell me a story about a fox and a lantern."
MS = 1e3
OFF_S, DRIFT = 100.0, 500e-6
"""Of one device's clock: real ones drift by a tenth of that."""

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

/* A monotonic clock that runs too fast from the first time it is read. */
int clock_gettime(clockid_t id, struct timespec *out)
{
    static int (*real)(clockid_t, struct timespec *);
    static double first;
    if (!real)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, out);
    if (id == CLOCK_MONOTONIC && !result) {
        double now = out->tv_sec + 1e-9 * out->tv_nsec;
        if (!first)
            first = now;
        now += (now - first) * DRIFT;
        out->tv_sec = (time_t)now;
        out->tv_nsec = (long)((now - (double)out->tv_sec) * 1e9);
    }
    return result;
}
"""


@dataclass(frozen=True)
class Frame:
    """A frame's way: rank and time in microseconds of the beginning of its sending, and of the end of its coming."""

    sender: int
    left: float
    receiver: int
    came: float


def read_trace(path: Path) -> list[dict[str, Any]]:
    events = json.loads(path.read_text())
    assert isinstance(events, list)
    return events


def frames_of(events: list[dict[str, Any]]) -> list[Frame]:
    begun = {event["id"]: event for event in events if event["ph"] == "s"}
    ended = {event["id"]: event for event in events if event["ph"] == "f"}
    assert begun.keys() == ended.keys()
    pairs = ((begun[number], ended[number]) for number in begun)
    return [Frame(start["pid"], start["ts"], end["pid"], end["ts"]) for start, end in pairs]


def stated_errors(events: list[dict[str, Any]]) -> dict[int, float]:
    """By rank: by how many microseconds its clock may be off at most."""
    errors: dict[int, float] = defaultdict(float)
    for event in events:
        if event["ph"] == "i" and "error_ms" in event.get("args", {}):
            errors[event["pid"]] = max(errors[event["pid"]], event["args"]["error_ms"] * MS)
    return errors


def test_everything_that_four_devices_do(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    arguments = ["--local-devices", "4", "--max-tokens", "12", "--window", "600kB", "--trace", str(path)]
    ended = home.run("run", "demo", PROMPT, *arguments)
    assert ended.code == 0, ended.err
    events = read_trace(path)
    named = [event for event in events if event.get("name") == "process_name"]
    assert [event["args"]["name"] for event in sorted(named, key=lambda event: event["pid"])] == [
        f"rank {rank}: local-{rank}" for rank in range(4)
    ]
    for rank in range(4):
        kinds = {event["cat"] for event in events if event["pid"] == rank and event["ph"] == "X"}
        assert kinds >= {"pass", "compute", "wait", "sum", "read", "disk", "send", "receive"}
    passes = [event for event in events if event.get("cat") == "pass"]
    assert len(passes) == 4 * 12  # the prompt's, and one for every token but the last
    assert len(frames_of(events)) > 12 * 16


def test_bytes_leave_when_a_sum_begins(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    arguments = ["--local-devices", "3", "--allreduce", "one-shot", "--max-tokens", "20", "--trace", str(path)]
    assert home.run("run", "demo", PROMPT, *arguments).code == 0
    events = read_trace(path)
    sends = defaultdict(list)
    for event in events:
        if event.get("cat") == "send" and event["name"].startswith("partial"):
            block = event["name"].removeprefix("partial ")
            sends[event["pid"], event["args"]["pass"], block, event["args"]["part"]].append(event["ts"])
    sums = [event for event in events if event.get("cat") == "sum"]
    delays = []
    for event in sums:
        key = event["pid"], event["args"]["pass"], event["name"].removeprefix("sum "), 0
        if key in sends:
            delays.append(min(sends[key]) - event["ts"])
    delays.sort()
    median, most = delays[len(delays) // 2], delays[-len(delays) // 20]
    print(f"of {len(delays)} sums: median {median:.0f} us, 95 of 100 {most:.0f} us")
    assert len(delays) > 300 and delays[0] > -1  # both are rounded
    assert most < MS


def unshare_time() -> list[str] | None:
    """The command that runs another one with its clock off by ``OFF_S``; None where the system cannot."""
    command = ["unshare", "--time", "--monotonic", f"{OFF_S:g}", "--fork", "--kill-child"]
    try:
        done = subprocess.run([*command, "true"], capture_output=True, check=False)
    except OSError:
        return None
    return command if done.returncode == 0 else None


@pytest.mark.skipif(unshare_time() is None, reason="time namespaces need root, and Linux 5.6")
def test_clocks_that_are_off_and_drift_are_put_right(home: Home, away: Home, tmp_path: Path) -> None:
    source, shim, path = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "trace.json"
    source.write_text(SHIM)
    build = ["cc", "-O1", "-shared", "-fPIC", f"-DDRIFT={DRIFT}", "-o", str(shim), str(source), "-ldl"]
    subprocess.run(build, check=True)
    through = [*(unshare_time() or []), "env", f"LD_PRELOAD={shim}"]
    arguments = ["serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--threads", "1", "--trace", str(path)]
    with (
        home.start(*arguments, "--max-tokens", "60") as serve,
        away.start("join", find_key(serve), "--name", "far", "--threads", "1", through=through) as join,
    ):
        serve.wait_for("ready: 2 devices")
        for _ in range(8):  # some seconds, in which the clock drifts by milliseconds
            serve.say(PROMPT)
            assert serve.process.stdout is not None and os.read(serve.process.stdout.fileno(), 1)
        ended = serve.wait()
        assert ended.code == 0, ended.err
        assert join.process.wait(20) == 0
    events = read_trace(path)
    frames, errors = frames_of(events), stated_errors(events)
    assert set(errors) == {1} and 0 < errors[1] < 50 * MS
    ways = {(frame.sender, frame.receiver) for frame in frames}
    assert ways == {(0, 1), (1, 0)} and len(frames) > 500
    early = [frame for frame in frames if frame.came < frame.left - errors[1]]
    shortest = min(frame.came - frame.left for frame in frames)
    took_s = (max(frame.came for frame in frames) - min(frame.left for frame in frames)) / 1e6
    print(f"{len(frames)} frames in {took_s:.1f} s, stated error {errors[1]:.0f} us, shortest way {shortest:.0f} us")
    assert early == []
    assert took_s * DRIFT > 2 * errors[1] / 1e6, "too short to show a drift"
