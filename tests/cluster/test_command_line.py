"""The command line with real processes: answers, stopping in every way, nothing left behind."""

import json
import os
import re
import signal
import stat
import time
from pathlib import Path

import pytest

from tests.cluster.commands import Home, find_key

PROMPT = "Tell me a story about a fox and a lantern."
GREEDY = ("--temperature", "0", "--max-tokens", "24")
FOUR = ("--local-devices", "4", "--memory", "160MiB", "--window", "600kB")


def test_four_devices_answer_as_one(home: Home) -> None:
    alone = home.run("run", "demo", PROMPT, *GREEDY, "--no-stats")
    together = home.run("run", "demo", PROMPT, *GREEDY, *FOUR)
    assert (alone.code, together.code) == (0, 0), together.err
    assert alone.out == together.out and len(alone.out.split()) > 10
    assert "seed" not in alone.err
    rows = [line.split() for line in together.err.splitlines() if re.match(r"\d +local-", line)]
    assert [row[0] for row in rows] == list("0123")
    for row in rows:
        assert row[3] == "MB" and float(row[2]) * 1e6 < 160 * (1 << 20)  # the kernel's peak figure
    assert "tokens/s" in together.err and "receives its slices" in together.err
    assert home.pids() == [] and home.left_behind() == []
    again = home.run("run", "demo", PROMPT, *GREEDY, *FOUR)
    assert again.out == alone.out
    assert "receives its slices" not in again.err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_all_ranks_end_with_the_master(home: Home, number: signal.Signals) -> None:
    with home.start("run", "demo", PROMPT, "--max-tokens", "1000", "--local-devices", "3") as master:
        assert master.process.stdout is not None
        assert master.process.stdout.read(10)
        assert len(home.pids()) == 3
        master.process.send_signal(number)
        assert master.process.wait(20) in (128 + number, -number)
        home.wait_until_quiet()
        if number != signal.SIGKILL:
            assert home.left_behind() == []
        assert "Traceback" not in master.err()


def test_keys_of_a_master_that_was_killed_go_with_the_next_one(home: Home) -> None:
    place = home.folder / "tmp"
    with home.start("run", "demo", PROMPT, "--max-tokens", "1000", "--local-devices", "2") as master:
        assert master.process.stdout is not None
        assert master.process.stdout.read(10)
        master.stop()
        (keys,) = place.iterdir()
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700 and list(keys.rglob("device.pem"))
        assert home.run("run", "demo", PROMPT, "--max-tokens", "2", "--local-devices", "2").code == 0
        assert list(place.iterdir()) == [keys], "it is in use"
        master.process.kill()
        master.process.wait()
    home.wait_until_quiet()
    assert list(place.iterdir()) == [keys]
    assert home.run("run", "demo", PROMPT, "--max-tokens", "2", "--local-devices", "2").code == 0
    assert list(place.iterdir()) == []


def test_a_rank_that_dies_ends_the_others_with_one_line(home: Home) -> None:
    with home.start("run", "demo", PROMPT, "--max-tokens", "1000", "--local-devices", "3", "--no-stats") as master:
        assert master.process.stdout is not None
        assert master.process.stdout.read(10)
        victim = next(pid for pid in home.pids() if pid != master.process.pid)
        os.kill(victim, signal.SIGKILL)
        assert master.process.wait(20) == 1
        last = master.err().splitlines()[-1]
        assert re.match(r"tpi: the process of local-\d ended: killed by signal 9", last), master.err()
        home.wait_until_quiet()
        assert home.left_behind() == []


def test_serve_join_status_and_removal(home: Home, away: Home) -> None:
    serve_options = ("--port", "0", "--bind", "127.0.0.1", "--max-tokens", "8", "--threads", "1", "--name", "desk")
    with home.start("serve", "demo", *serve_options) as serve:
        key = find_key(serve)
        with away.start("join", "-", "--name", "attic", "--threads", "1", "--window", "1MB") as join:
            join.say(key)
            serve.wait_for("ready: 2 devices")
            status = json.loads(home.run("status", "--json").out)
            assert [(rank["rank"], rank["name"]) for rank in status["ranks"]] == [(0, "desk"), (1, "attic")]
            assert status["ranks"][1]["n_pinned"] < status["ranks"][1]["n_pieces"]
            assert abs(sum(rank["share"] for rank in status["ranks"]) - 1) < 1e-9
            (socket,) = home.folder.glob("state/run/*.sock")
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600
            assert "attic" in home.run("status").out
            answered = serve.wait(f"{PROMPT}\nThank you!\n")
            assert answered.code == 0 and len(answered.out.splitlines()) == 2
            ended = join.wait()
            assert (ended.code, ended.last_line) == (0, "the master has ended the session")
            assert key not in ended.err and key not in serve.err()
            assert stat.S_IMODE((home.folder / "state" / "join-key").stat().st_mode) == 0o600
    assert home.run("status").code == 2
    assert "attic" in home.run("devices").out
    assert home.run("remove", "attic").code == 0
    assert "removed" in home.run("devices").out
    with home.start("serve", "demo", *serve_options) as serve:
        find_key(serve)
        refused = away.run("join", "-", stdin=key + "\n")
        assert refused.code == 1 and refused.last_line.startswith("tpi: ")


def test_a_shard_cut_beforehand_is_used(home: Home, away: Home, tmp_path: Path) -> None:
    cut = home.run("shard", "demo", "--ranks", "2", "--shares", "2,1", "--out", str(tmp_path / "out"))
    shard = cut.out.splitlines()[1]
    options = ("--port", "0", "--bind", "127.0.0.1", "--threads", "1", "--shares", "2,1", *GREEDY)
    with home.start("serve", "demo", *options) as serve:
        key = find_key(serve)
        with away.start("join", key, "--shard", shard, "--threads", "1") as join:
            serve.wait_for("ready: 2 devices")
            assert len(serve.wait(PROMPT).out.split()) > 10
            assert join.wait().code == 0
    assert list(away.folder.glob("shards/**/*.tpishard")) == []


def test_a_worker_at_rest_is_small(home: Home, away: Home) -> None:
    options = ("--port", "0", "--bind", "127.0.0.1", "--workers", "2")
    with home.start("serve", "demo", *options) as serve, away.start("join", find_key(serve)) as join:
        serve.wait_for("1 of 2 devices")
        time.sleep(0.2)
        text = Path(f"/proc/{join.process.pid}/status").read_text()
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", text)
        assert int(peak) * 1024 <= 80e6
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(20) == 143
        assert join.wait().code != 0
