"""The mesh in C (``native.exchange``): the same as ``mesh``, without the interpreter between two system calls.

Owns the C object, which refers to the links' sockets and TLS objects; they live as long as the links.
"""

import ctypes
import os
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from tpi.cluster.mesh.datalink import DataLink, Exchange, Incoming, check_step, refuse_size
from tpi.cluster.mesh.frames import HEADER_BYTES, KEY_BYTES, FrameBuffer, unpack_header
from tpi.cluster.mesh.mesh import Mesh, Sources, Targets
from tpi.errors import LinkError, ProtocolError
from tpi.native.exchange import (
    BROKEN,
    CLOSED,
    NO_FRAME,
    OUT_OF_STEP,
    STOPPED,
    TIMED_OUT,
    TOO_LARGE,
    Helper,
    load_helper,
)
from tpi.trace import EVENT, Trace

_LINK_ERROR = 8
_LINK_SHIFT = 16
_KEPT = 512
_LOG_EVENTS = 1 << 14
"""Between two passes."""


class _Targets(Targets):
    def __init__(self, ranks: Sequence[int], places: Mapping[int, int]) -> None:
        super().__init__(ranks)
        self.links = (ctypes.c_int32 * max(len(self.ranks), 1))(*(places[rank] for rank in self.ranks))
        self.address, self.n = ctypes.addressof(self.links), len(self.ranks)


class _Sources(Sources):
    def __init__(self, frames: Mapping[int, Incoming], places: Mapping[int, int]) -> None:
        super().__init__(frames)
        self.n = len(self.frames)
        room, buffers = max(self.n, 1), [incoming.buffer for incoming in self.frames.values()]
        self.links = (ctypes.c_int32 * room)(*(places[rank] for rank in self.frames))
        self.buffers = (ctypes.c_void_p * room)(*(buffer.address for buffer in buffers))
        self.capacities = (ctypes.c_uint32 * room)(*(buffer.capacity_bytes for buffer in buffers))
        self.addresses = tuple(ctypes.addressof(array) for array in (self.links, self.buffers, self.capacities))
        self.key_bytes = min((incoming.key_bytes for incoming in self.frames.values()), default=KEY_BYTES)


class NativeMesh(Mesh):
    """See ``Mesh``."""

    def __init__(
        self,
        helper: Helper,
        rank: int,
        links: Mapping[int, DataLink],
        epoch: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises:
        LookupError: a link's TLS object is not found.
        MemoryError: the system gives no memory.
        """
        pointers = [_pointer_of(helper, link) for link in links.values()]
        super().__init__(rank, links, epoch, clock)
        self._freeing = threading.RLock()  # other threads may shut down and count; a signal's handler may, too
        self.library = helper.library
        self._ranks = tuple(self._links)
        self._places = {rank: place for place, rank in enumerate(self._ranks)}
        n = len(self._ranks)
        descriptors = (ctypes.c_int32 * max(n, 1))(*(link.descriptor for link in self._links.values()))
        tls = (ctypes.c_void_p * max(n, 1))(*pointers)
        wake = self._wake_receiver.fileno()
        self._mesh: int | None = self.library.exchange_new(ctypes.byref(helper.tls), n, descriptors, tls, wake)
        if not self._mesh:
            self.close()
            raise MemoryError
        self._trace: Trace | None = None
        self._log = np.zeros(0, EVENT)
        self._recent: deque[object] = deque(maxlen=_KEPT)
        """What C has pointers to is not freed before it is used up, whatever errors end a sum."""

    @property
    def address(self) -> int:
        """Of the C object, while the mesh is open.

        Raises:
            LinkError: it is not.
        """
        return self._open()

    def places_of(self, ranks: Sequence[int]) -> list[int]:
        """The numbers of peers in C."""
        return [self._places[rank] for rank in ranks]

    def close(self) -> None:
        is_first = not self._is_closed
        super().close()
        if is_first and self._mesh:
            self._last_counts = self._link_counts()
            with self._freeing:
                mesh, self._mesh = self._mesh, None
                self.library.exchange_free(mesh)

    def _link_counts(self) -> tuple[int, int]:
        sent, received = ctypes.c_uint64(), ctypes.c_uint64()
        with self._freeing:
            if not self._mesh:
                return self._last_counts
            self.library.exchange_counts(self._mesh, ctypes.byref(sent), ctypes.byref(received))
        return sent.value, received.value

    def shut_down(self, error: LinkError) -> None:
        self._end = self._end or error
        with self._freeing:
            if self._mesh:
                self.library.exchange_stop(self._mesh)
        self.wake()

    def targets(self, ranks: Sequence[int]) -> Targets:
        return _Targets(ranks, self._places)

    def sources(self, frames: Mapping[int, Incoming]) -> Sources:
        return _Sources(frames, self._places)

    def send(self, targets: Targets, buffer: FrameBuffer, exchange: Exchange) -> None:
        assert isinstance(targets, _Targets)
        self._recent.append(exchange)
        result = self.library.exchange_send(self._open(), targets.address, targets.n, buffer.address, exchange.address)
        if result:
            self.raise_for(result)

    def expect(self, sources: Sources, key: bytes, exchange: Exchange) -> None:
        assert isinstance(sources, _Sources)
        self._recent.append((sources, exchange))
        links, buffers, capacities = sources.addresses
        result = self.library.exchange_expect(
            self._open(), links, sources.n, buffers, capacities, key, sources.key_bytes, exchange.address
        )
        if result:
            self.raise_for(result)

    def log_to(self, trace: Trace) -> None:
        self._trace = trace
        self._log = np.zeros(_LOG_EVENTS, EVENT)
        self.library.exchange_log(self._open(), self._log.ctypes.data, len(self._log))

    def tell_log(self) -> None:
        if self._trace is not None and self._mesh is not None:
            n_dropped = ctypes.c_int64()
            n = self.library.exchange_logged(self._mesh, ctypes.byref(n_dropped))
            events = self._log[:n].copy()
            events["peer"] = np.array(self._ranks, np.int16)[events["peer"]]
            self._trace.add_all(events, n_dropped.value)

    def arm(self) -> None:
        self.library.exchange_arm(self._open())

    def sleep(self, timeout_s: float | None = None) -> None:
        self.library.exchange_sleep(self._open(), _milliseconds(timeout_s))
        self._check_end()

    def move(self) -> None:
        result = self.library.exchange_move(self._open())
        if result:
            self.raise_for(result)
        self._check_end()

    def _advance(self, exchange: Exchange, timeout_s: float | None) -> None:
        result = self.library.exchange_wait(self._open(), exchange.address, _milliseconds(timeout_s))
        if result and result != TIMED_OUT:
            self.raise_for(result)

    def _open(self) -> int:
        if self._mesh is None:
            self._check_end()
            raise LinkError("the data links were closed on this side")
        return self._mesh

    def raise_for(self, result: int) -> NoReturn:
        """The error that a function of the library reports."""
        if result == STOPPED:
            self._check_end()
            raise LinkError("the data links were closed on this side")
        place, error = (result - _LINK_ERROR) // _LINK_SHIFT, (result - _LINK_ERROR) % _LINK_SHIFT
        header, key = (ctypes.c_uint8 * HEADER_BYTES)(), (ctypes.c_uint8 * KEY_BYTES)()
        detail = ctypes.c_int32()
        self.library.exchange_error(self._open(), place, header, key, ctypes.byref(detail))
        link = self._links[self._ranks[place]]
        match error:
            case _ if error == CLOSED:
                raise link.broken(None)
            case _ if error == BROKEN:
                raise link.broken(OSError(detail.value, _words(detail.value)))
            case _ if error == TOO_LARGE:
                raise refuse_size(link.peer, unpack_header(bytes(header)), detail.value)
            case _ if error in (OUT_OF_STEP, NO_FRAME):
                check_step(link.peer, unpack_header(bytes(header)), bytes(key))
                raise ProtocolError(f"{link.peer} sent what does not belong to this epoch")
        raise ProtocolError(
            f"{detail.value + 1} frames are under way with {link.peer}, at most {detail.value} can be: "
            "is it busy with other things?"
        )

    def _waited_for(self, exchange: Exchange) -> tuple[int, ...]:
        is_waited_for = self.library.exchange_is_waited_for
        found = (rank for rank, place in self._places.items() if is_waited_for(self._open(), place, exchange.address))
        return tuple(sorted(found))


def open_mesh(
    rank: int, links: Mapping[int, DataLink], epoch: int, cache: Path | None, with_helper: bool = True
) -> Mesh:
    """The mesh over ``links``, in C if that can be had. ``cache`` is where it is noted whether it can."""
    helper = load_helper(cache) if with_helper else None
    if helper is not None:
        try:
            return NativeMesh(helper, rank, links, epoch)
        except LookupError:
            pass
    return Mesh(rank, links, epoch)


def _pointer_of(helper: Helper, link: DataLink) -> int | None:
    """None for a plain socket."""
    if not isinstance(link.socket, ssl.SSLSocket):
        return None
    pointer = helper.pointer_of(link.socket)
    if pointer is None:
        raise LookupError(link.peer)
    return pointer


def _milliseconds(timeout_s: float | None) -> int:
    return -1 if timeout_s is None else max(0, min(int(timeout_s * 1e3) + 1, 1 << 30))


def _words(number: int) -> str:
    return "TLS error" if not number else os.strerror(number)
