"""The mesh: this rank's data links to all others in one epoch, driven together.

Owns the links. One thread at a time drives it (``send``, ``expect``, ``wait``, ``move``): the one that runs passes, or
the one that carries sums through for it (``allreduce.driver``). ``sleep``, ``shut_down`` and ``wake`` are for every
thread. ``NativeMesh`` (``nativemesh``) does the same in C.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming
from tpi.cluster.mesh.framelog import FrameLog
from tpi.cluster.mesh.frames import FrameBuffer
from tpi.cluster.mesh.polling import GONE, READABLE, make_poll
from tpi.errors import LinkError, LinkTimeoutError
from tpi.trace import Trace


class Targets:
    """Peers that get the same frames, in this order. Made by ``Mesh.targets``, to be used again and again."""

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = tuple(ranks)


class Sources:
    """Frames that come from peers, one from each. Made by ``Mesh.sources``, to be used again and again."""

    def __init__(self, frames: Mapping[int, Incoming]) -> None:
        self.frames = dict(frames)


class Mesh:
    """A context manager; ``close`` is idempotent."""

    def __init__(
        self, rank: int, links: Mapping[int, DataLink], epoch: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``links`` by the peer's rank; all of them belong to ``epoch``."""
        self.rank, self.epoch = rank, epoch
        self._links = dict(links)
        self._clock = clock
        self._by_descriptor = {link.descriptor: link for link in self._links.values()}
        self._poll = make_poll()
        for link in self._links.values():
            self._poll.register(link.descriptor, 0)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        for sock in (self._wake_receiver, self._wake_sender):
            sock.setblocking(False)
        self._poll.register(self._wake_receiver.fileno(), READABLE)
        self._events: list[tuple[int, int]] = []
        self._end: LinkError | None = None
        self._is_closed = False
        self._beside = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all links. By the thread that drives the mesh, or after it has ended."""
        if self._is_closed:
            return
        self._is_closed = True
        self.shut_down(LinkError("the data links were closed on this side"))
        for link in self._links.values():
            link.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    @property
    def peers(self) -> tuple[int, ...]:
        """The ranks that this one has links to, ascending."""
        return tuple(sorted(self._links))

    def counts(self) -> tuple[int, int]:
        """Bytes sent and received, headers included, TLS excluded."""
        sent, received = self._link_counts()
        return sent + self._beside[0], received + self._beside[1]

    def add_counts(self, n_sent_bytes: int, n_received_bytes: int) -> None:
        """Counts what has gone to peers beside the links. By one thread."""
        self._beside = self._beside[0] + n_sent_bytes, self._beside[1] + n_received_bytes

    def name_of(self, rank: int) -> str:
        """What the peer is called."""
        return self._links[rank].peer

    def shut_down(self, error: LinkError) -> None:
        """Ends every wait, now and later, with ``error``; the first one counts. From any thread."""
        self._end = self._end or error
        self.wake()

    def check_open(self) -> None:
        """Raises:
        LinkError: the mesh was shut down. From any thread; for who waits for something else.
        """
        self._check_end()

    def wake(self) -> None:
        """Lets ``sleep`` return. From any thread; never blocks."""
        with contextlib.suppress(OSError):  # full: it will return anyway; closed: it has ended
            self._wake_sender.send(b"x")

    def log_to(self, trace: Trace) -> None:
        """From now on ``trace`` is told when frames leave and come."""
        for rank, link in self._links.items():
            link.log = FrameLog(trace, rank)

    def tell_log(self) -> None:
        """Tells ``trace`` what it was not told yet. By the thread that drives the mesh."""

    def targets(self, ranks: Sequence[int]) -> Targets:
        """Peers to send the same to."""
        return Targets(ranks)

    def sources(self, frames: Mapping[int, Incoming]) -> Sources:
        """Where frames of peers go."""
        return Sources(frames)

    def send(self, targets: Targets, buffer: FrameBuffer, exchange: Exchange) -> None:
        """Sends the sealed frame in ``buffer`` to all targets, as much as the system takes; the rest leaves when it
        can, and counts in ``exchange`` until it has. Meanwhile the buffer must not change.

        Raises:
            LinkError: a peer is lost.
        """
        for rank in targets.ranks:
            link = self._links[rank]
            link.send(buffer, exchange)
            self._listen(link)

    def expect(self, sources: Sources, key: bytes, exchange: Exchange) -> None:
        """The next frame with ``key`` of every source goes to its place; each counts in ``exchange`` until it is there.

        Raises:
            LinkError, ProtocolError: a peer is lost or sent what cannot be.
        """
        for rank, incoming in sources.frames.items():
            link = self._links[rank]
            link.expect(incoming, key, exchange)
            self._listen(link)

    def wait(self, exchange: Exchange, limit_s: float | None = None) -> None:
        """Blocks until all that ``exchange`` counts has come and left.

        Raises:
            LinkError: a peer is lost, or the mesh was shut down, or it took longer than ``limit_s``.
            ProtocolError: a peer sent what cannot be.
        """
        deadline_s = None if limit_s is None else self._clock() + limit_s
        while exchange.n_left:
            left_s = None if deadline_s is None else deadline_s - self._clock()
            if left_s is not None and left_s <= 0:
                names = ", ".join(self.name_of(rank) for rank in self._waited_for(exchange))
                raise LinkTimeoutError(f"{names} did not answer within {limit_s:g} s")
            self._advance(exchange, left_s)

    def arm(self) -> None:
        """Says what ``sleep`` is to wait for; by the thread that drives the mesh."""

    def sleep(self, timeout_s: float | None = None) -> None:
        """Blocks until something can be moved, or ``wake``, or for ``timeout_s``. Touches no link: another thread may
        use them meanwhile, and calls ``wake`` when it has.

        Raises:
            LinkError: the mesh was shut down.
        """
        if self._end is None:
            self._events = self._poll.poll(None if timeout_s is None else timeout_s * 1e3)
        self._check_end()

    def move(self) -> None:
        """Moves what can be moved after ``sleep``.

        Raises:
            LinkError, ProtocolError: as ``wait``.
        """
        events, self._events = self._events, []
        for descriptor, mask in events:
            link = self._by_descriptor.get(descriptor)
            if link is None:
                with contextlib.suppress(BlockingIOError):
                    self._wake_receiver.recv(4096)
            else:
                link.move(mask, is_gone=bool(mask & GONE))
                self._listen(link)
        self._check_end()

    def _advance(self, exchange: Exchange, timeout_s: float | None) -> None:
        """One turn of a wait."""
        self.sleep(timeout_s)
        self.move()

    def _link_counts(self) -> tuple[int, int]:
        links = self._links.values()
        return sum(link.n_bytes_sent for link in links), sum(link.n_bytes_received for link in links)

    def _check_end(self) -> None:
        if self._end is not None:
            raise self._end

    def _listen(self, link: DataLink) -> None:
        wanted = link.wanted()
        if wanted != link.armed:
            link.armed = wanted
            self._poll.modify(link.descriptor, wanted)

    def _waited_for(self, exchange: Exchange) -> tuple[int, ...]:
        return tuple(rank for rank, link in sorted(self._links.items()) if link.is_waited_for(exchange))
