"""A server before a scripted engine, for all tests of a file."""

from collections.abc import Iterator

import pytest

from tests.unit.api.scripted import Played, played


@pytest.fixture(scope="module")
def server() -> Iterator[Played]:
    with played() as found:
        yield found
