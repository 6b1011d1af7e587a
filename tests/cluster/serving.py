"""A served model for tests: a master and its workers as people start them, and the port of its API."""

import contextlib
import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import openai

from tests.cluster.commands import Home, Running, find_key


@dataclass(frozen=True)
class Served:
    """``master`` answers at ``url``."""

    master: Running
    workers: Sequence[Running]
    url: str
    model: str

    @property
    def root(self) -> str:
        """Where APIs lie that do not begin with a version."""
        return self.url.removesuffix("/v1")

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=120)


@contextlib.contextmanager
def serve(
    model: str, parent: Path, cache: Path, n_ranks: int = 1, *options: str, name: str = "demo"
) -> Iterator[Served]:
    """Ends it with SIGTERM, in order."""
    with Home.several(n_ranks, parent, cache) as homes, serve_on(homes, model, *options, name=name) as served:
        yield served


@contextlib.contextmanager
def serve_on(homes: Sequence[Home], model: str, *options: str, name: str = "demo") -> Iterator[Served]:
    """The same, on devices that may have done so before."""
    n_ranks = len(homes)
    with ExitStack() as stack:
        common = ("--bind", "127.0.0.1", "--port", "0", "--threads", "1", "--workers", str(n_ranks - 1))
        master = stack.enter_context(homes[0].start("serve", model, *common, "--api-port", "0", *options))
        key = find_key(master) if n_ranks > 1 else ""
        workers = [
            stack.enter_context(home.start("join", key, "--name", f"w{number}", "--threads", "1"))
            for number, home in enumerate(homes[1:], start=1)
        ]
        said = master.wait_for("the API is at ")
        found = re.search(r"the API is at (\S+)", said)
        assert found is not None
        yield Served(master, workers, found[1], name)
        master.process.send_signal(signal.SIGTERM)
        assert master.process.wait(15) == 128 + signal.SIGTERM, master.err()
        assert "Traceback" not in master.err(), master.err()
