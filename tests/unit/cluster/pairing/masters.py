"""Masters that accept links on loopback and keep them for the test."""

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tpi.cluster.pairing.acceptor import AcceptedLink, Acceptor
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority, MasterGate
from tpi.cluster.pairing.gate import LinkTokens
from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.errors import TpiError

WAIT_S = 20.0


@dataclass
class Master:
    """What a test looks at."""

    authority: Authority
    tokens: LinkTokens
    acceptor: Acceptor
    links: "queue.Queue[AcceptedLink]"
    refused: "queue.Queue[str]"

    @property
    def key(self) -> JoinKey:
        return self.authority.join_key((Address("127.0.0.1", self.acceptor.port),))

    @property
    def address(self) -> Address:
        return self.key.addresses[0]


@contextmanager
def running_master(folder: Path, port: int = 0) -> Iterator[Master]:
    authority = Authority.open(folder)
    tokens = LinkTokens()
    links: queue.Queue[AcceptedLink] = queue.Queue()
    refused: queue.Queue[str] = queue.Queue()
    gate = MasterGate(authority, tokens)
    with Acceptor(listen("127.0.0.1", port), gate, links.put, refused.put) as acceptor:
        yield Master(authority, tokens, acceptor, links, refused)
    while not links.empty():
        links.get().socket.close()


def expect(kind: type[TpiError], message: str, call: Callable[[], object]) -> str:
    """The one line of the error that ``call`` must raise."""
    with pytest.raises(kind, match=message) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and text.isprintable()
    return text
