"""The bounded queues between a control link's I/O thread and every other thread, and why the link ended.

Knows no sockets. Any thread may call anything; the methods of the I/O thread never block.
"""

import collections
import threading
from collections.abc import Callable

from tpi.cluster.control.messages import AnyMessage
from tpi.errors import LinkError, LinkTimeoutError

_OBJECT_BYTES = 256
"""What a decoded message takes at least, however short it was."""


class Mailbox:
    """Encoded messages to send, decoded ones that came."""

    def __init__(self, peer: str, max_outbox_bytes: int, max_inbox_bytes: int, wake: Callable[[], None]) -> None:
        """``wake`` is called when the I/O thread has something new to do; it must not block."""
        self._peer = peer
        self._max_outbox_bytes = max_outbox_bytes
        self._max_inbox_bytes = max_inbox_bytes
        self._wake = wake
        self._changed = threading.Condition()
        self._outbox: collections.deque[bytes] = collections.deque()
        self._n_outbox_bytes = 0
        self._inbox: collections.deque[tuple[AnyMessage, int]] = collections.deque()
        self._n_inbox_bytes = 0
        self._closing = False
        self._end: LinkError | None = None

    @property
    def closing(self) -> bool:
        """Whether this side wants to end the link."""
        return self._closing

    @property
    def end(self) -> LinkError | None:
        """Why the link has ended, or None."""
        return self._end

    def put(self, encoded: bytes, beyond_bytes: int) -> None:
        """Queue a message; raises LinkError when the bound is exceeded by more than ``beyond_bytes``."""
        with self._changed:
            self._check_open()
            if self._n_outbox_bytes + len(encoded) > self._max_outbox_bytes + beyond_bytes:
                raise LinkError(f"{self._peer} does not take its messages: {self._n_outbox_bytes} bytes are waiting")
            self._append(encoded)

    def wait_put(self, encoded: bytes, timeout_s: float | None) -> None:
        """Queue a message as soon as it fits the bound, or the queue is empty."""

        def may_go_on() -> bool:
            fits = self._n_outbox_bytes + len(encoded) <= self._max_outbox_bytes
            return fits or not self._outbox or self._closing or self._end is not None

        with self._changed:
            if not self._changed.wait_for(may_go_on, timeout_s):
                raise LinkTimeoutError(f"{self._peer} took no message for {timeout_s:g} s: is it still running?")
            self._check_open()
            self._append(encoded)

    def wait_take(self, timeout_s: float | None) -> AnyMessage:
        """The next message that came, those from before the end included."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._inbox) or self._end is not None, timeout_s):
                raise LinkTimeoutError(f"{self._peer} sent no message for {timeout_s:g} s")
            if self._inbox:
                return self._pop()
            assert self._end is not None
            raise self._end

    def start_closing(self) -> None:
        """Take nothing more to send."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._wake()

    def next_outgoing(self) -> bytes | None:
        """For the I/O thread: the next message to send, which leaves the queue."""
        with self._changed:
            if not self._outbox:
                return None
            encoded = self._outbox.popleft()
            self._n_outbox_bytes -= len(encoded)
            self._changed.notify_all()
            return encoded

    def has_outgoing(self) -> bool:
        """For the I/O thread: whether something waits to be sent."""
        return bool(self._outbox)

    def has_room_for_incoming(self) -> bool:
        """For the I/O thread: whether to read on."""
        return self._n_inbox_bytes <= self._max_inbox_bytes

    def deliver(self, message: AnyMessage, n_bytes: int) -> None:
        """For the I/O thread: a message came."""
        n_bytes += _OBJECT_BYTES
        with self._changed:
            self._inbox.append((message, n_bytes))
            self._n_inbox_bytes += n_bytes
            self._changed.notify_all()

    def finish(self, end: LinkError) -> None:
        """For the I/O thread: nothing more will come or go."""
        with self._changed:
            self._end = end
            self._outbox.clear()
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._end is not None:
            raise self._end
        if self._closing:
            raise LinkError(f"the control link to {self._peer} was closed on this side")

    def _append(self, encoded: bytes) -> None:
        self._outbox.append(encoded)
        self._n_outbox_bytes += len(encoded)
        self._wake()

    def _pop(self) -> AnyMessage:
        message, n_bytes = self._inbox.popleft()
        was_full = not self.has_room_for_incoming()
        self._n_inbox_bytes -= n_bytes
        if was_full:
            self._wake()
        return message
