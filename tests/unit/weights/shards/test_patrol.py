"""The check of a shard in use: waits for quiet, finds damage, ends when told."""

import threading
import time
from pathlib import Path

import pytest

from tests.unit.weights.helpers import cut_shard, flip, make_model
from tpi.errors import ChecksumError, TpiError
from tpi.weights.shards.patrol import Patrol


def test_finds_damage_once_it_is_quiet(tmp_path: Path) -> None:
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 1)
    flip(shard.path, shard.file_offset(2) + 5)
    quiet, found = threading.Event(), threading.Event()
    errors: list[TpiError] = []

    def on_damage(error: TpiError) -> None:
        errors.append(error)
        found.set()

    with Patrol(shard, quiet.is_set, on_damage) as patrol:
        assert not found.wait(0.2)
        quiet.set()
        assert found.wait(10)
        assert not patrol.is_done
    assert isinstance(errors[0], ChecksumError) and "piece 2" in str(errors[0])


@pytest.mark.parametrize("is_made_anew", [False, True])
def test_only_the_file_that_it_has_read_goes(tmp_path: Path, is_made_anew: bool) -> None:
    """Another session may have found the same damage, and made the shard anew."""
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 1)
    sound = shard.path.read_bytes()
    flip(shard.path, shard.file_offset(2) + 5)
    quiet, found, errors = threading.Event(), threading.Event(), list[TpiError]()

    def on_damage(error: TpiError) -> None:
        errors.append(error)
        found.set()

    with Patrol(shard, quiet.is_set, on_damage, removes=True):
        if is_made_anew:
            (tmp_path / "anew").write_bytes(sound)
            (tmp_path / "anew").replace(shard.path)
        quiet.set()
        assert found.wait(10)
    assert "start again to get it anew" in str(errors[0])
    assert shard.path.exists() == is_made_anew


def test_a_sound_shard_is_done(tmp_path: Path) -> None:
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 0)
    errors: list[TpiError] = []
    with Patrol(shard, lambda: True, errors.append) as patrol:
        wait_until_done(patrol)
    assert not errors


def wait_until_done(patrol: Patrol) -> None:
    deadline_s = time.monotonic() + 10
    while not patrol.is_done and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert patrol.is_done


def test_a_file_that_was_removed_meanwhile_is_checked_all_the_same(tmp_path: Path) -> None:
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 0)
    quiet, errors = threading.Event(), list[TpiError]()
    with Patrol(shard, quiet.is_set, errors.append) as patrol:
        shard.path.unlink()
        quiet.set()
        wait_until_done(patrol)
    assert not errors


def test_a_file_that_is_gone_before_is_nothing_to_check(tmp_path: Path) -> None:
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 0)
    shard.path.unlink()
    errors = list[TpiError]()
    patrol = Patrol(shard, lambda: True, errors.append)
    time.sleep(0.2)
    patrol.close()
    assert not patrol.is_done and not errors


def test_closing_ends_a_round_that_waits(tmp_path: Path) -> None:
    shard = cut_shard(make_model(tmp_path), tmp_path / "s", (1, 1), 0)
    patrol = Patrol(shard, lambda: False, lambda error: None)
    patrol.close()
    patrol.close()
    assert not patrol.is_done
