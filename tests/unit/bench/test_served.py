"""Clusters over loopback: what is told of one that cannot start."""

from pathlib import Path

import pytest

from bench.loopback import Loopback
from bench.served import ServedCluster, Worker, stand_in
from tpi.errors import LinkError


def test_a_stand_in_that_does_not_start_is_told(tmp_path: Path) -> None:
    with Loopback() as bed, pytest.raises(LinkError, match="device 1 did not start"):
        ServedCluster(bed, ["none.gguf"], [Worker(("bench.standins", "--nonsense"), is_early=True)], [{}, {}])


def test_the_masters_last_words_are_told(tmp_path: Path) -> None:
    home = {"TPI_HOME": str(tmp_path)}
    missing = str(tmp_path / "none.gguf")
    with Loopback() as bed, pytest.raises(LinkError, match=r"device 0 ended; last words: .*none\.gguf"):
        ServedCluster(bed, [missing], [stand_in("one", tmp_path)], [home, home])
