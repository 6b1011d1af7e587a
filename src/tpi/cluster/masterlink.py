"""What the master says to a worker: its messages in their order, and the end of an epoch or of the session.

Owns the control link. The worker's main thread takes messages, and is told why what it does is over; the link's thread
puts them where they wait, and lets the ``Session`` answer what cannot wait.
"""

import queue
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, Self

from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import AnyMessage, EndEpoch, Failed, Goodbye, Message, one_line
from tpi.cluster.pairing.connect import OpenedLink
from tpi.errors import Cancelled, Dismissed, LinkError, ProtocolError, TpiError

MAX_INBOX = 64
_REASON_TIMEOUT_S = 3.0
"""The master itself waits for a moment until it knows."""
_REASON_POLL_S = 0.01
_WAKE = Goodbye("")
"""Lets the inbox's reader look up."""


class Session(Protocol):
    """Whom the master speaks to. Called by the link's thread, so nothing here may take long."""

    def answer(self, message: AnyMessage) -> bool:
        """Answers what does not have to wait for its turn; whether it was that."""

    def interrupt(self, error: LinkError) -> None:
        """Ends the pass that runs, or what is being measured."""

    def interrupt_after(self, last_pass: int, error: LinkError) -> None:
        """Ends what runs once the pass of this number is through, or soon."""

    def give_up(self, error: LinkError) -> None:
        """The session is over: nothing will come any more."""


class MasterLink:
    """A context manager that ends the link and its thread."""

    def __init__(self, opened: OpenedLink, session: Session) -> None:
        self._session = session
        self._inbox: queue.Queue[AnyMessage] = queue.Queue(MAX_INBOX)
        self._is_goodbye = False
        self._ended_epoch = -1
        """The epoch that the master has ended last."""
        self.end: LinkError | None = None
        """Why the session is over: the master is gone, or said goodbye."""
        self.control = ControlLink(opened.socket, f"the master {opened.host}", None, self._on_message, self._stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.control.close()

    @property
    def is_farewell(self) -> bool:
        """The session is over, and all is well."""
        return self._is_goodbye and not str(self.end)

    def send(self, message: Message) -> None:
        """Raises:
        LinkError: the master is gone.
        """
        self.control.send(message)  # type: ignore[arg-type]

    def tell_failure(self, error: BaseException) -> None:
        """This device cannot go on; says why, if somebody listens."""
        with suppress(LinkError):
            self.send(Failed(one_line(_reason_of(error))))

    def next(self) -> AnyMessage:
        """The master's next message. Blocks; raises why there will be none."""
        while True:
            self.check()
            message = self._inbox.get()
            if message is not _WAKE:
                return message

    def check(self) -> None:
        """Raises why the session is over."""
        if self.end is not None:
            raise self.end

    def check_epoch(self, epoch: int) -> None:
        """Raises why what is being done for this epoch is over."""
        self.check()
        if self._ended_epoch >= epoch:
            raise Cancelled("the epoch is over")

    @contextmanager
    def unless_ended(self, epoch: int) -> Iterator[None]:
        """Swallows the errors with which an epoch's work ends because the master has ended it."""
        try:
            yield
        except (LinkError, Cancelled):
            try:
                self._wait_end(epoch)
            except Cancelled:
                return
            raise

    def _wait_end(self, epoch: int) -> None:
        """Raises as ``check_epoch``, once the master has said something: others may have heard before that an epoch is
        over, and closed their links."""
        deadline_s = time.monotonic() + _REASON_TIMEOUT_S
        while time.monotonic() < deadline_s:
            self.check_epoch(epoch)
            time.sleep(_REASON_POLL_S)

    # The link's thread.

    def _on_message(self, message: AnyMessage) -> None:
        match message:
            case Goodbye():
                self._is_goodbye = True
                self._stop(Dismissed(one_line(message.reason)))
            case EndEpoch():
                self._ended_epoch = message.epoch
                self._session.interrupt_after(message.last_pass, LinkError("the epoch is over"))
                self._put(message)
            case _:
                if not self._session.answer(message):
                    self._put(message)

    def _put(self, message: AnyMessage) -> None:
        try:
            self._inbox.put_nowait(message)
        except queue.Full:
            raise ProtocolError("the master sends more than can be taken") from None

    def _stop(self, error: LinkError) -> None:
        """Ends whatever the other thread waits for."""
        self.end = self.end or error
        if not self._inbox.full():
            self._inbox.put_nowait(_WAKE)
        self._session.interrupt(error)
        self._session.give_up(error)


def _reason_of(error: BaseException) -> str:
    """What the master is told when this device cannot go on."""
    if isinstance(error, TpiError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it has no memory left: give it less to do, or close other programs on it"
    if isinstance(error, OSError):
        return f"{error.strerror or type(error).__name__}{f': {error.filename}' if error.filename else ''}"
    if isinstance(error, Exception):
        return f"a defect of tpi ({type(error).__name__}: {error})"
    return "it was stopped there"
