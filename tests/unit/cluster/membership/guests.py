"""Devices that come to a membership over real links."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import AnyMessage, Goodbye, Offer
from tpi.cluster.membership.member import Member
from tpi.cluster.membership.membership import Membership
from tpi.cluster.pairing.connect import find_or_join, open_control
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.errors import LinkError, LinkTimeoutError

WAIT_S = 20.0


class Guests:
    """A membership, and the devices' ends of their control links."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self.membership = stack.enter_context(Membership(folder / "state" / "authority", "master", "127.0.0.1", 0))

    def identity(self, name: str) -> Identity:
        return find_or_join(JoinKey.decode(self.membership.join_key), name, IdentityStore(self._folder / name))

    def come(self, name: str) -> ControlLink:
        """The device's end of a new control link."""
        identity = self.identity(name)
        key = JoinKey.decode(self.membership.join_key)
        link = ControlLink(open_control(key.addresses, identity).socket, "the master")
        return self._stack.enter_context(link)

    def member(self, name: str, rank: int = -1) -> tuple[Member, ControlLink]:
        """A device that was admitted, with both ends of its link."""
        link = self.come(name)
        wait_until(lambda: not self.membership._arrived.empty())
        self.membership.admit(64)
        member = self.membership.members[-1]
        member.rank = rank
        assert member.name.startswith(name)
        return member, link


@contextmanager
def open_guests(folder: Path) -> Iterator[Guests]:
    with ExitStack() as stack:
        yield Guests(folder, stack)


def offer() -> Offer:
    return Offer(1 << 30, [])


def goodbye(link: ControlLink) -> str:
    """The reason with which the master ends the link, after whatever else it says."""
    message: AnyMessage = link.receive(WAIT_S)
    while not isinstance(message, Goodbye):
        message = link.receive(WAIT_S)
    return message.reason


def is_ended(link: ControlLink) -> bool:
    """Waits until nothing more comes."""
    try:
        while True:
            link.receive(WAIT_S)
    except LinkError as error:
        return "closed the control link" in str(error)


def is_silent(link: ControlLink, for_s: float = 0.0) -> bool:
    """Whether nothing comes."""
    try:
        link.receive(for_s)
    except LinkTimeoutError:
        return True
    return False


def wait_until(is_so: Callable[[], bool]) -> None:
    """Waits for what another thread does."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.005)
