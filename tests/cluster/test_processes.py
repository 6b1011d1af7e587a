"""Real processes over TLS: they answer like one device, and end in order whatever happens to one of them."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import Home, find_key
from tests.cluster.ranks import DEMO, Story, greedy
from tests.cluster.sessions import session
from tests.cluster.stalls import run_with_stalls
from tests.cluster.stories import N_TOKENS, CheckAnswers
from tests.models import write_random_model
from tpi.engine.language import Language
from tpi.errors import LinkError

NOTICED_S = 4.0
"""A dead worker is noticed at once, a silent one within 2 s (``ControlSettings``); the rest is for ending in order."""

SHARES = (3, 2, 2, 1)
SHARES_OPTION = ["--shares", ",".join(map(str, SHARES))]


@pytest.fixture
def others(tmp_path: Path, cache: Path) -> Iterator[list[Home]]:
    """Three more devices."""
    with Home.several(3, tmp_path, cache) as homes:
        yield homes


@pytest.fixture(scope="module")
def talkative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that talks for seconds."""
    path = tmp_path_factory.mktemp("talkative") / "talkative.gguf"
    return write_random_model(
        path, n_layers=16, n_embd=512, n_heads=8, n_ff=1536, types="Q4_0", context=4096, ends=False
    )


def test_four_devices_tell_the_story_of_one(
    tmp_path: Path,
    home: Home,
    others: list[Home],
    story: Story,
    check_answers: CheckAnswers,
) -> None:
    with session(tmp_path / "master", others, SHARES) as (cluster, _):
        check_answers(cluster)
        tokens = greedy(cluster, DEMO, story.prompt, N_TOKENS)
        status = cluster.status()
    assert [rank.rank for rank in status.ranks] == [0, 1, 2, 3]
    assert status.ranks[0].streamed_bytes > 0
    # The same cluster as one command: equal partition, payload and passes, so equal bits.
    with Language(DEMO) as language:
        text = b"".join(map(language.vocabulary.token_bytes, tokens)).decode("utf-8", "ignore")
    arguments = ["--temperature", "0", "--max-tokens", str(N_TOKENS), "--local-devices", "4", "--threads", "1"]
    ended = home.run("run", "demo", story.question, *arguments, *SHARES_OPTION, "--context", "512")
    assert ended.code == 0, ended.err
    assert ended.out.strip() == text.strip()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_lost_in_an_answer(home: Home, others: list[Home], talkative: Path, how: signal.Signals) -> None:
    arguments = ["serve", str(talkative), "--bind", "127.0.0.1", "--port", "0", "--workers", "2", "--threads", "1"]
    with home.start(*arguments, "--raw", "--temperature", "0", "--max-tokens", "4000") as serve:
        key = find_key(serve)
        with (
            others[0].start("join", key, "--name", "first", "--threads", "1") as first,
            others[1].start("join", key, "--name", "second", "--threads", "1") as second,
        ):
            serve.wait_for("ready: 3 devices work")
            serve.say("w1 w2 w3")
            assert serve.process.stdout is not None and os.read(serve.process.stdout.fileno(), 1)
            second.process.send_signal(how)
            lost_at = time.monotonic()
            code = serve.process.wait(30)
            took_s = time.monotonic() - lost_at
            print(f"{how!r}: the master ended after {took_s:.2f} s: {serve.err().splitlines()[-1]}")
            assert code == 1 and took_s < NOTICED_S
            last_line = serve.err().splitlines()[-1]
            assert last_line.startswith("tpi: second (rank ") and "Traceback" not in serve.err()
            assert first.process.wait(NOTICED_S) == 1
            assert "second (rank " in first.err().splitlines()[-1]
            if how is signal.SIGSTOP:
                second.process.send_signal(signal.SIGCONT)
            assert second.process.wait(NOTICED_S) != 0


def test_a_worker_that_is_told_to_end_in_an_answer_says_so(home: Home, others: list[Home], talkative: Path) -> None:
    arguments = ["serve", str(talkative), "--bind", "127.0.0.1", "--port", "0", "--workers", "2", "--threads", "1"]
    with home.start(*arguments, "--raw", "--temperature", "0", "--max-tokens", "4000") as serve:
        key = find_key(serve)
        with (
            others[0].start("join", key, "--name", "first", "--threads", "1") as first,
            others[1].start("join", key, "--name", "second", "--threads", "1") as second,
        ):
            serve.wait_for("ready: 3 devices work")
            serve.say("w1 w2 w3")
            assert serve.process.stdout is not None and os.read(serve.process.stdout.fileno(), 1)
            second.process.send_signal(signal.SIGTERM)
            assert serve.process.wait(NOTICED_S) == 1
            said = r"second \(rank \d\) cannot go on: it was stopped there$"
            assert re.match(rf"tpi: {said}", serve.err().splitlines()[-1]), serve.err()
            assert first.process.wait(NOTICED_S) == 1 and re.search(said, first.err().splitlines()[-1])
            assert second.process.wait(NOTICED_S) == 128 + signal.SIGTERM


def test_a_device_that_does_not_answer_keeps_its_share_in_the_status(tmp_path: Path, others: list[Home]) -> None:
    with pytest.raises(LinkError), session(tmp_path / "master", others, SHARES) as (cluster, workers):
        before = cluster.status()
        assert before.silent == ()
        workers[1].stop()
        try:
            status = cluster.status()
        finally:
            workers[1].process.send_signal(signal.SIGCONT)
        assert status.silent == ("w2",)
        assert [(rank.rank, rank.share) for rank in status.ranks] == [(rank.rank, rank.share) for rank in before.ranks]
        assert sum(rank.share for rank in status.ranks) == pytest.approx(1)
        raise LinkError("w2 was silent for too long")


def test_a_local_worker_killed_in_an_answer(home: Home, talkative: Path) -> None:
    arguments = ["--local-devices", "3", "--threads", "1", "--raw", "--temperature", "0", "--max-tokens", "4000"]
    with home.start("run", str(talkative), "w1 w2 w3", *arguments) as running:
        assert running.process.stdout is not None and os.read(running.process.stdout.fileno(), 1)
        victim = next(pid for pid in home.pids() if pid != running.process.pid)
        os.kill(victim, signal.SIGKILL)
        code = running.process.wait(NOTICED_S)
        last_line = running.err().splitlines()[-1]
        assert code == 1 and last_line.startswith("tpi: ") and "local-" in last_line and "signal 9" in last_line
        home.wait_until_quiet(1)
    assert home.left_behind() == []


def test_workers_end_with_a_master_that_is_killed(home: Home, others: list[Home]) -> None:
    arguments = ["serve", "demo", "--bind", "127.0.0.1", "--port", "0", "--workers", "1", "--threads", "1"]
    with (
        home.start(*arguments) as serve,
        others[0].start("join", find_key(serve), "--name", "first", "--threads", "1") as first,
    ):
        serve.wait_for("ready: 2 devices work")
        serve.process.kill()
        assert first.process.wait(NOTICED_S) == 1
        assert "Traceback" not in first.err() and first.err().splitlines()[-1].startswith("tpi: ")


def test_devices_that_stand_still_are_kept(home: Home, others: list[Home]) -> None:
    """A short form of ``python -m tests.cluster.stalls``."""
    outcome = run_with_stalls([home, *others], seconds=12)
    assert outcome.n_stalls >= 5 and outcome.n_answers >= 1
