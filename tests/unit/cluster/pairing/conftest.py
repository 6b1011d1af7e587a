"""A master, and where a device keeps who it is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cluster.pairing.masters import Master, running_master
from tpi.cluster.pairing.identity import IdentityStore


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    with running_master(tmp_path / "master") as running:
        yield running


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    return IdentityStore(tmp_path / "worker")
