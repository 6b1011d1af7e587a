"""ControlLink: typed messages both ways over one TLS connection, heartbeats, and noticing that the peer is lost.

Does not open connections (``connect``, ``acceptor``) and knows no message but the heartbeat (``messages`` has their
bytes). One I/O thread per link (``control_io``) owns the socket; every other thread goes through bounded queues
(``mailbox``).
"""

import ssl
import threading
from collections.abc import Callable
from types import TracebackType

from tpi.cluster.control.io import ControlIO, ControlSettings
from tpi.cluster.control.mailbox import Mailbox
from tpi.cluster.control.messages import MAX_MESSAGE_BYTES, AnyMessage, encode_message
from tpi.errors import LinkError, TpiError

OnMessage = Callable[[AnyMessage], None]
OnLost = Callable[[LinkError], None]


class ControlLink:
    """One end of a control connection, from construction to ``close`` or loss. Takes the socket over."""

    def __init__(
        self,
        sock: ssl.SSLSocket,
        peer: str,
        settings: ControlSettings | None = None,
        on_message: OnMessage | None = None,
        on_lost: OnLost | None = None,
    ) -> None:
        """``peer`` names the other device in errors.

        ``on_message`` gets the messages instead of ``receive``; a TpiError that it raises ends the link. ``on_lost``
        is told once when the link ends by anything but ``close``. Both run in the I/O thread, must not block, and may
        call ``send`` and ``close``; they can run before this constructor has returned.
        """
        settings = settings or ControlSettings()
        self.peer = peer
        self._on_message = on_message
        self._on_lost = on_lost
        self._io = ControlIO(sock, peer, settings, self._deliver)
        self._mailbox = Mailbox(peer, settings.max_outbox_bytes, settings.max_inbox_bytes, self._io.wake)
        self._thread = threading.Thread(target=self._run, name=f"tpi-control-{peer}", daemon=True)
        self._thread.start()

    def send(self, message: AnyMessage) -> None:
        """Queue a message, without waiting; messages arrive in the order in which they were queued.

        Raises LinkError when the link has ended, or when far more is queued than the bound of ``wait_send``.
        """
        self._mailbox.put(encode_message(message), MAX_MESSAGE_BYTES)

    def wait_send(self, message: AnyMessage, timeout_s: float | None = None) -> None:
        """Queue a message once there is room: for whoever sends much. Not from a callback.

        Raises LinkError when the link has ended, LinkTimeoutError when there was no room for ``timeout_s``.
        """
        self._mailbox.wait_put(encode_message(message), timeout_s)

    def receive(self, timeout_s: float | None = None) -> AnyMessage:
        """Wait for the next message. None waits until one comes or the link ends, which silence ends, too.

        Messages from before the end are still given; after them LinkError. Raises LinkTimeoutError after ``timeout_s``.
        """
        return self._mailbox.wait_take(timeout_s)

    @property
    def lost(self) -> LinkError | None:
        """Why the link has ended, or None while it has not."""
        return self._mailbox.end

    @property
    def n_bytes_sent(self) -> int:
        """Heartbeats included, TLS excluded."""
        return self._io.n_bytes_sent

    @property
    def n_bytes_received(self) -> int:
        """Heartbeats included, TLS excluded."""
        return self._io.n_bytes_received

    def close(self) -> None:
        """Send what is queued, for a bounded time, then end the link. From any thread; idempotent."""
        self._mailbox.start_closing()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "ControlLink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, message: AnyMessage, n_bytes: int) -> None:
        if self._on_message is not None:
            self._on_message(message)
        else:
            self._mailbox.deliver(message, n_bytes)

    def _run(self) -> None:
        """The I/O thread."""
        end = LinkError(f"the control link to {self.peer} ended by a defect of this program")
        lost = True
        try:
            self._io.run(self._mailbox)
            end = LinkError(f"the control link to {self.peer} was closed on this side")
            lost = False
        except LinkError as error:
            end = error
        except TpiError as error:
            end = LinkError(f"the control link to {self.peer} was ended: {error}")
        finally:
            lost = lost and not self._mailbox.closing
            self._io.close()
            self._mailbox.finish(end)
            if lost and self._on_lost is not None:
                self._on_lost(end)
