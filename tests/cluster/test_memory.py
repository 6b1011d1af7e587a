"""A process run under --memory stays under it, by the kernel's own peak figure, with the whole context written."""

import json
import re
from pathlib import Path

import pytest

from tests.cluster.commands import Ended, Home, find_key
from tests.cluster.peaks import PeakWatch, peak_of
from tests.cluster.ranks import DEMO
from tests.cluster.serving import serve
from tests.models import write_random_model
from tpi.planner.memory import JITTER_BYTES

MIB = 1 << 20
JOINED_LIMIT_BYTES = 80_000_000
CONTEXT = 512
DEMO_PROMPT = "Once upon a time, a little fox named Hazel lived in the forest. " * 31
BIG_PROMPT = " ".join(f"w{number}" for number in range(110))


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """68 MB of random weights in Q4_0."""
    path = tmp_path_factory.mktemp("big") / "big.gguf"
    return write_random_model(
        path, n_layers=10, n_embd=1024, n_heads=16, n_kv_heads=4, n_ff=2816, n_vocab=4096, types="Q4_0", context=CONTEXT
    )


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """108 MB, with a KV cache of 33 MB in F16."""
    path = tmp_path_factory.mktemp("middle") / "middle.gguf"
    return write_random_model(
        path,
        n_layers=16,
        n_embd=1024,
        n_heads=16,
        n_kv_heads=16,
        n_ff=2304,
        n_vocab=4096,
        types="Q4_0",
        context=CONTEXT,
    )


def answer(
    home: Home, model: Path, prompt: str, n_ranks: int, memory_bytes: int, n_threads: int = 1, kv_type: str = "F16"
) -> tuple[Ended, list[int]]:
    """Fills the context; the peaks of all ranks, the master's first."""
    arguments = ["run", str(model), "-", "--raw", "--temperature", "0", "--max-tokens", str(CONTEXT)]
    arguments += ["--context", str(CONTEXT), "--local-devices", str(n_ranks)]
    arguments += ["--memory", str(memory_bytes), "--threads", str(n_threads), "--kv-type", kv_type]
    with home.start(*arguments) as running, PeakWatch(running.process.pid) as watch:
        ended = running.wait(prompt)
    return ended, [watch.master_bytes, *watch.worker_bytes]


def least_bytes(ended: Ended) -> int:
    """The minimum that the error names."""
    found = re.search(r"\S+ of memory is too little: this rank needs at least (\d+)MiB", ended.last_line)
    assert ended.code == 1 and found, ended.err
    return int(found[1]) * MIB


def check_full(ended: Ended, prompt_at_least: int = 256) -> None:
    """It answered, after a prefill of several passes, until all cells were written."""
    assert ended.code == 0, ended.err
    found = re.search(r"(\d+) prompt tokens, .*; (\d+) tokens, ", ended.err)
    assert found, ended.err
    n_prompt, n_answer = map(int, found.groups())
    # The last token of an answer goes through no pass.
    assert n_prompt >= prompt_at_least and n_prompt + n_answer == CONTEXT + 1


@pytest.mark.parametrize(
    ("name", "n_ranks", "n_threads", "is_also_run_with_more"),
    [("demo", 1, 1, False), ("demo", 3, 1, True), ("demo", 2, 2, False), ("big", 2, 1, True), ("big", 3, 1, False)],
)
def test_stays_under_its_limit(
    home: Home, big: Path, name: str, n_ranks: int, n_threads: int, is_also_run_with_more: bool
) -> None:
    """The minimum that the error names is enough, cutting and sending slices included; and more is not exceeded."""
    model, prompt = (DEMO, DEMO_PROMPT) if name == "demo" else (big, BIG_PROMPT)
    refused, _ = answer(home, model, prompt, n_ranks, MIB, n_threads)
    least = least_bytes(refused)
    for limit in (least, least + 24 * MIB) if is_also_run_with_more else (least,):
        ended, peaks = answer(home, model, prompt, n_ranks, limit, n_threads)
        check_full(ended)
        said = ", ".join(f"{peak / 1e6:.1f}" for peak in peaks)
        print(f"{name}, {n_ranks} ranks, {n_threads} threads, limit {limit / 1e6:.1f} MB: peaks {said} MB")
        assert len(peaks) == n_ranks and min(peaks) > 0 and max(peaks) <= limit
        # What is allowed is used: a limit that wastes half would be no help.
        assert peaks[0] >= limit // 2


@pytest.mark.parametrize("kv_type", ["F16", "Q8_0"])
def test_the_plan_is_what_the_kernel_counts(home: Home, middle: Path, kv_type: str) -> None:
    """Within 5 %, on master and worker: what is planned, which is all that is allowed as the weights do not fit; and
    what `tpi inspect` says would be the least."""
    refused, _ = answer(home, middle, BIG_PROMPT, 2, MIB, kv_type=kv_type)
    least = least_bytes(refused)
    limit = least + 20 * MIB
    ended, peaks = answer(home, middle, BIG_PROMPT, 2, limit, kv_type=kv_type)
    check_full(ended)
    for rank, peak in enumerate(peaks):
        options = ["--memory", str(limit), "--ranks", "2", "--rank", str(rank), "--context", str(CONTEXT)]
        shown = home.run("inspect", str(middle), *options, "--threads", "1", "--kv-type", kv_type, "--json")
        facts = json.loads(shown.out)
        print(f"{kv_type}, rank {rank}: planned {limit / 1e6:.1f} MB, peak {peak / 1e6:.1f} MB, {facts}")
        assert facts["total_bytes"] == limit and facts["streamed_bytes"] > 0
        assert 0.95 * limit <= peak <= limit
        in_memory = re.search(rf"^{rank} +\S+ +\S+ MB +\S+ MB +\S+ MB +(\S+) MB", ended.err, re.MULTILINE)
        assert in_memory, ended.err
        other_base_bytes = JITTER_BYTES + 1_500_000  # another process, which measured speeds, too; and whole MB
        assert abs(float(in_memory[1]) * 1e6 - facts["arena_bytes"] - facts["pins_bytes"]) < other_base_bytes
        if rank == 0:
            assert 0.95 * least <= facts["minimum_bytes"] <= 1.05 * least


def test_cells_that_are_not_written_lend_their_memory(home: Home, middle: Path) -> None:
    """A short answer reads less per token than the plan, which counts every cell as written."""
    options = ["--memory", "170MB", "--context", str(CONTEXT), "--threads", "1"]
    planned = json.loads(home.run("inspect", str(middle), *options, "--json").out)
    ended = home.run("run", str(middle), "w1 w2 w3", "--raw", "--max-tokens", "24", "--temperature", "0", *options)
    read = re.search(r"^0 .* (\d+) MB +0 B +\S+ \S+$", ended.err, re.MULTILINE)
    assert ended.code == 0 and read, ended.err
    print(f"{read[1]} MB per token, {planned['streamed_bytes'] / 1e6:.0f} MB when the cache is full")
    assert int(read[1]) * 1e6 < 0.75 * planned["streamed_bytes"]


def test_a_context_of_what_memory_allows(tmp_path: Path, cache: Path) -> None:
    """Two callers fill it, to the last cell, and the peak is what was allowed."""
    path = write_random_model(
        tmp_path / "long.gguf", n_layers=8, n_heads=32, n_kv_heads=32, types="Q4_0", context=1 << 15, ends=False
    )
    limit, options = 165_000_000, ("--context", "auto", "--parallel", "3", "--shares", "1,1")
    with serve(str(path), tmp_path, cache, 2, "--memory", str(limit), *options, name="long") as served:
        with served.client() as client:
            found = re.search(r"ready: 2 devices work, context (\d+);", served.master.err())
            assert found, served.master.err()
            n_cells = int(found[1])
            lengths = n_cells // 3, n_cells - n_cells // 3
            prompts = [[300 + (7 * i + n) % 20 for i in range(n // 32 * 32 - 8)] for n in lengths]
            answer = client.completions.create(model="long", prompt=prompts, max_tokens=9, temperature=0)
        assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
        peak = peak_of(served.master.process.pid)
    print(f"{n_cells} cells, limit {limit / 1e6:.1f} MB: peak {peak / 1e6:.1f} MB")
    assert 128 < n_cells < 1 << 15 and 0.8 * limit < peak <= limit


def test_a_workers_own_minimum(home: Home, away: Home, big: Path) -> None:
    """A worker that cannot hold its share says so, and so does the master; what it names is enough."""
    serve_arguments = ["serve", str(big), "--bind", "127.0.0.1", "--port", "0", "--workers", "1", "--shares", "1,3"]
    serve_arguments += [
        "--context",
        str(CONTEXT),
        "--threads",
        "1",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        str(CONTEXT),
    ]
    with home.start(*serve_arguments) as serve:
        with away.start("join", find_key(serve), "--memory", "1MiB", "--threads", "1", "--name", "small") as worker:
            refused = worker.wait()
        ended = serve.wait()
    least = least_bytes(refused)
    assert ended.code != 0 and "small" in ended.last_line and f"at least {least // MIB}MiB" in ended.last_line
    with home.start(*serve_arguments) as serve:
        arguments = ["join", find_key(serve), "--memory", str(least), "--threads", "1", "--name", "small"]
        with away.start(*arguments) as worker, PeakWatch(worker.process.pid) as watch:
            check_full(serve.wait(BIG_PROMPT + "\n"))
            assert worker.wait().code == 0
    print(f"worker with 3/4 of 68 MB, limit {least / 1e6:.1f} MB: peak {watch.master_bytes / 1e6:.1f} MB")
    assert least // 2 <= watch.master_bytes <= least


def test_a_worker_that_holds_nothing(home: Home, away: Home, tmp_path: Path, cache: Path) -> None:
    """It has joined and waits for others, and with a share of 0 it works."""
    arguments = ["serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--workers", "2", "--shares", "1,0,0"]
    with home.start(*arguments, "--threads", "1", "--max-tokens", "16") as serve:
        key = find_key(serve)
        with (
            away.start("join", key, "--name", "one", "--threads", "1") as one,
            PeakWatch(one.process.pid) as watch,
        ):
            serve.wait_for("one has joined")
            joined = peak_of(one.process.pid)
            third = Home(tmp_path / "third", cache)
            with third.start("join", key, "--name", "two", "--threads", "1") as two:
                ended = serve.wait("Hello!\n")
                assert (ended.code, one.wait().code, two.wait().code) == (0, 0, 0), ended.err
    print(f"joined: {joined / 1e6:.1f} MB; worked with a share of 0: {watch.master_bytes / 1e6:.1f} MB")
    assert 0 < joined <= JOINED_LIMIT_BYTES
    assert watch.master_bytes <= JOINED_LIMIT_BYTES
