"""Bad input to real commands: one line that says what and what to do, no traceback, nothing left behind."""

import contextlib
import dataclasses
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import Ended, Home, Running, find_key
from tests.models import write_random_model
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.weights.shards.shard import open_shard

SERVE = ("serve", "demo", "--bind", "127.0.0.1", "--threads", "1")


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Running]:
    """A master that waits for a worker which never comes."""
    with Home(tmp_path_factory.mktemp("serve") / "home", cache).start(*SERVE, "--port", "0") as serve:
        yield serve


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 20 MB at ``folder``."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def check(ended: Ended, *said: str) -> None:
    """It failed with one line of ours, in which every one of ``said`` stands."""
    assert ended.code in (1, 2), ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("tpi: ") == 1 and ended.last_line.startswith("tpi: "), ended.err
    for words in said:
        assert words in ended.last_line, ended.last_line


def test_a_file_that_is_no_model(home: Home, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("Dear diary")
    ended = home.run("run", str(tmp_path / "notes.txt"), "hi", "--local-devices", "2")
    check(ended, "notes.txt is not a GGUF file")
    assert home.left_behind() == []


@pytest.mark.parametrize("n_bytes", [3, 20, 200, -100])
def test_a_truncated_model(home: Home, tmp_path: Path, n_bytes: int) -> None:
    whole = write_random_model(tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:n_bytes])
    ended = home.run("run", str(tmp_path / "cut.gguf"), "hi")
    check(ended, "cut.gguf")
    assert re.search("truncated|damaged|not a GGUF", ended.last_line)


def test_an_architecture_that_is_not_supported(home: Home, tmp_path: Path) -> None:
    whole = write_random_model(tmp_path / "whole.gguf").read_bytes()
    length = len("llama").to_bytes(8, "little")
    (tmp_path / "other.gguf").write_bytes(whole.replace(length + b"llama", length + b"camel", 1))
    check(home.run("run", str(tmp_path / "other.gguf"), "hi"), "architecture 'camel' is not supported", "llama")


def test_no_join_key(away: Home) -> None:
    check(away.run("join"), "--key-file", "TPI_JOIN_KEY", "tpi serve")


def test_a_join_key_with_a_mistake(away: Home, serve: Running) -> None:
    key = find_key(serve)
    wrong = key[:50] + ("a" if key[50] != "a" else "b") + key[51:]
    ended = away.run("join", "-", stdin=wrong + "\n")
    check(ended, "typing mistake")
    assert wrong[5:30] not in ended.err


def test_a_join_key_of_a_cluster_that_gave_it_up(away: Home, serve: Running) -> None:
    key = JoinKey.decode(find_key(serve))
    wrong = dataclasses.replace(key, secret=bytes(16)).encode()
    check(away.run("join", "-", stdin=wrong + "\n"), "refused", "key")


def test_a_join_key_of_another_master(away: Home, serve: Running) -> None:
    key = JoinKey.decode(find_key(serve))
    wrong = dataclasses.replace(key, fingerprint=bytes(32)).encode()
    check(away.run("join", "-", stdin=wrong + "\n"), "not the master that made this join key")


def test_a_master_that_is_gone(home: Home, away: Home) -> None:
    with home.start(*SERVE, "--port", "0") as serve:
        key = find_key(serve)
    check(away.run("join", "-", stdin=key + "\n"), "cannot reach the master", "refused the connection")


def test_a_worker_of_another_version(away: Home, serve: Running) -> None:
    program = "import sys, tpi.version; tpi.version.PROTOCOL_VERSION = 99; import tpi.cli.main; "
    program += "sys.exit(tpi.cli.main.main())"
    with away.start("join", "-", program=program) as join:
        check(join.wait(find_key(serve) + "\n"), "protocol version", "install the same version")
    serve.wait_for("protocol version 99")


def test_no_space_on_the_workers_disk(away: Home, home: Home) -> None:
    with home.start(*SERVE, "--port", "0", "--no-stats") as serve:
        ended = away.run("join", find_key(serve), "--threads", "1", prefix=["ulimit -f 600"])
        check(ended, "no room for the shard", "free some")
        check(serve.wait("hi\n"), "no room for the shard")
    assert list(away.folder.glob("shards/**/*.*")) == []
    assert home.left_behind(may_resume=True) == []


def test_no_space_on_the_masters_disk(home: Home) -> None:
    ended = home.run("run", "demo", "hi", "--local-devices", "2", prefix=["ulimit -f 600"])
    check(ended, "no room for the shard")
    assert home.left_behind(may_resume=True) == []


def test_no_space_for_a_rearranged_copy(home: Home, tmp_path: Path) -> None:
    model = str(write_random_model(tmp_path / "model.gguf", types="Q4_0"))
    arguments = ("run", model, "w1 w2", "--threads", "1", "--max-tokens", "4", "--seed", "1")
    ended = home.run(*arguments, prefix=["ulimit -f 600"])
    assert ended.code == 0 and ended.out == home.run(*arguments, "--no-repack").out, ended.err
    (said,) = (line for line in ended.err.splitlines() if "no room for a rearranged copy of the weights" in line)
    assert "computing goes on without it" in said and "prune" in said
    assert list(home.folder.glob("shards/**/*.tpishard*")) == []


def test_rearranged_shards_of_several_ranks_need_no_more_space(home: Home, tmp_path: Path) -> None:
    model = str(write_random_model(tmp_path / "model.gguf", types="Q4_0"))
    with small_disk(home.folder / "shards"):
        arguments = ("--threads", "1", "--max-tokens", "4", "--local-devices", "2")
        ended = home.run("run", model, "w1 w2", *arguments)
        assert ended.code == 0, ended.err
        assert "no room for a rearranged copy of the weights" not in ended.err
        shards = [open_shard(path) for path in home.folder.glob("shards/*/*.tpishard")]
        assert len(shards) == 2 and all(shard.header.repacking for shard in shards)


def test_too_little_memory_names_the_minimum(home: Home) -> None:
    ended = home.run("run", "demo", "Tell me a story about a cat and a bell.", "--memory", "70MiB", "--max-tokens", "5")
    check(ended, "70MiB of memory is too little", "needs at least")
    (minimum,) = re.findall(r"at least (\d+)MiB", ended.last_line)
    assert 70 < int(minimum) < 130
    assert home.run("run", "demo", "hi", "--memory", f"{int(minimum) + 1}MiB", "--max-tokens", "5").code == 0


def test_too_little_memory_on_a_worker(away: Home, home: Home) -> None:
    with home.start(*SERVE, "--port", "0") as serve:
        ended = away.run("join", find_key(serve), "--memory", "30MiB", "--threads", "1")
        check(ended, "30MiB of memory is too little", "needs at least")
        check(serve.wait("hi\n"), "cannot go on: 30MiB of memory is too little")
    assert home.left_behind(may_resume=True) == []


def test_a_port_in_use(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check(home.run(*SERVE, "--port", str(port)), f"port {port}", "in use", "another port")
    assert home.left_behind() == []


def test_an_address_of_another_device(home: Home) -> None:
    check(home.run("serve", "demo", "--bind", "192.0.2.1", "--port", "0"), "192.0.2.1", "not an address of this device")


def test_nobody_comes(home: Home) -> None:
    check(home.run(*SERVE, "--port", "0", "--workers", "2", "--wait", "0.5"), "0 of 2 devices joined within 0.5 s")
    assert home.left_behind() == []


def test_a_shard_of_another_model(home: Home, away: Home, tmp_path: Path) -> None:
    other = write_random_model(tmp_path / "other.gguf")
    shard = home.run("shard", str(other), "--ranks", "2", "--out", str(tmp_path / "out")).out.splitlines()[1]
    with home.start(*SERVE, "--port", "0") as serve:
        key = find_key(serve)
        ended = away.run("join", key, "--shard", shard, "--threads", "1", "--name", "other")
        check(ended, "shard")
        serve.wait_for("turned away other: ")
        with away.start("join", key, "--threads", "1") as join:  # nobody else suffers
            answered = serve.wait("hi\n")
            assert answered.code == 0 and answered.out, answered.err
            assert join.process.wait(30) == 0


def test_what_the_model_cannot_be_run_with_is_refused_before_anybody_joins(home: Home, tmp_path: Path) -> None:
    check(home.run(*SERVE, "--port", "0", "--context", "1000000"), "a context of 1000000", "1 to 1024 tokens")
    check(home.run(*SERVE, "--port", "0", "--kv-type", "Q3_K"), "not possible: a KV cache of type Q3_K", "F16, Q8_0")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(home: Home) -> None:
    (home.folder / "state").mkdir()
    (home.folder / "state").chmod(0o500)
    check(home.run(*SERVE, "--port", "0"), "cannot create the folder")
