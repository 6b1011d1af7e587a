"""Devices for tests that run commands: each with folders of its own, quiet again in the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.commands import Home
from tests.cluster.stories import check_answers, cut_for, one_device, story, unrounded_demo  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all devices of these tests know of the kernels."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def home(tmp_path: Path, cache: Path) -> Iterator[Home]:
    """The master's device."""
    home = Home(tmp_path / "home", cache)
    yield home
    home.wait_until_quiet()


@pytest.fixture
def away(tmp_path: Path, cache: Path) -> Iterator[Home]:
    """Another device."""
    with Home.several(1, tmp_path, cache) as (away,):
        yield away
