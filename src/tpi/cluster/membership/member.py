"""A worker as the master sees it: its control link, what it offered, what it tells.

Callbacks run in the threads of the control link and of the slices, and only put things where the master looks.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import (
    AnyMessage,
    ClockReply,
    ClockRequest,
    Failed,
    FetchRun,
    Goodbye,
    Message,
    Offer,
    PrefixDone,
    Prepared,
    StatusReply,
    StatusRequest,
    TraceReply,
    TraceRequest,
    one_line,
)
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.pairing.tls import Device
from tpi.cluster.reports import RankStatus
from tpi.cluster.transfer.slices import RunServer
from tpi.errors import LinkError, ProtocolError, TpiError
from tpi.gguf.reader import Gguf
from tpi.model.spec import ModelSpec
from tpi.weights.strips import Strips

News: TypeAlias = "AnyMessage | LinkError"
Deliver: TypeAlias = "Callable[[Member, News], None]"


_MAX_WORD = 64

Question: TypeAlias = StatusRequest | ClockRequest | TraceRequest


@dataclass(frozen=True)
class Answer:
    """What a worker answered, and when it came, seconds of the monotonic clock."""

    message: StatusReply | ClockReply | TraceReply | PrefixDone
    at_s: float


class Member:
    """One worker, from its control link on. ``deliver`` gets its messages that are no answers, and its end; a TpiError
    that it raises ends the link."""

    def __init__(self, link: AcceptedLink, deliver: Deliver) -> None:
        self.device: Device = link.device
        self.host = link.address.rpartition(":")[0].strip("[]")
        """Where it calls from."""
        self.rank = -1
        self.offer: Offer | None = None
        self.end: LinkError | None = None
        """Why this worker is of no more use."""
        self.status: RankStatus | None = None
        """What it told last, as far as it is its own to tell."""
        self._server: RunServer | None = None
        self._deliver = deliver
        self._answered = threading.Condition()
        self._asked = 0
        self._answers: dict[int, Answer | None] = {}
        """To what was asked; None: not yet."""
        self.control = ControlLink(link.socket, f"{self.name} ({link.address})", None, self._on_message, self._on_lost)

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} (rank {self.rank})" if self.rank > 0 else self.name

    def close(self) -> None:
        """Ends links and threads; what is queued is sent first. Idempotent."""
        self.control.close()
        self._stop_serving()

    def send(self, message: Message) -> None:
        """Raises:
        LinkError: the worker is gone.
        """
        self.control.send(message)  # type: ignore[arg-type]

    def take_offer(self, message: AnyMessage) -> None:
        """The first message of a worker.

        Raises:
            ProtocolError: it is something else.
        """
        if not isinstance(message, Offer):
            raise ProtocolError(f"{self.name} sent {type(message).__name__} before its offer")
        self.offer = message

    def serve_slices(self, gguf: Gguf, spec: ModelSpec, strips: Strips) -> None:
        """Answers its requests for slices from now on; what it reads for them it shares in ``strips``."""
        if self._server is None:
            self._server = RunServer(self.control, gguf, spec, self._on_slices_failed, strips, lambda: self.rank)

    def dismiss(self, reason: str) -> None:
        """Says goodbye, with a reason unless all is well, and closes."""
        with contextlib.suppress(LinkError):
            self.control.send(Goodbye(one_line(reason)))
        self.close()

    def ask(self, question: Callable[[int], Question]) -> int:
        """Asks something; the number belongs to ``wait_answer``, which is to follow.

        Raises:
            LinkError: the worker is gone.
        """
        number = self.expect()
        self.send(question(number))
        return number

    def expect(self) -> int:
        """The number of something that it will be asked, in whatever way, for ``wait_answer``, which is to follow."""
        with self._answered:
            self._asked += 1
            self._answers[self._asked] = None
            return self._asked

    def wait_answer(self, number: int, timeout_s: float) -> "Answer | None":
        """The answer to the question, None if it does not come in time, or the worker is of no more use."""
        with self._answered:
            self._answered.wait_for(lambda: self._answers.get(number) is not None or self.end is not None, timeout_s)
            return self._answers.pop(number, None)

    def finish(self, error: LinkError) -> None:
        """This worker is of no more use. The first reason counts, and is delivered once."""
        with self._answered:
            if self.end is not None:
                return
            self.end = error
            self._answered.notify_all()
        self._deliver(self, error)

    def _on_message(self, message: AnyMessage) -> None:
        match message:
            case FetchRun():
                if self._server is not None:
                    self._server.request(message)
            case Prepared():
                if self._server is not None:
                    self._server.leave()
                self._deliver(self, message)
            case StatusReply() | ClockReply() | TraceReply() | PrefixDone():
                came_s = time.monotonic()
                with self._answered:
                    if isinstance(message, StatusReply):
                        self.status = self._own(message.status)
                    if message.number in self._answers:
                        self._answers[message.number] = Answer(message, came_s)
                        self._answered.notify_all()
            case Failed():
                self.finish(LinkError(f"{self.title} cannot go on: {one_line(message.reason)}"))
            case _:
                self._deliver(self, message)

    def _own(self, status: RankStatus) -> RankStatus:
        """What a worker tells of itself: rank and name are not its to tell, and words are for people's terminals."""
        return msgspec.structs.replace(
            status,
            rank=self.rank,
            name=self.name,
            doing=one_line(status.doing)[:_MAX_WORD],
            disk_mode=one_line(status.disk_mode)[:_MAX_WORD],
        )

    def _on_lost(self, error: LinkError) -> None:
        self.finish(LinkError(f"{self.title} is gone: {error}"))

    def _on_slices_failed(self, error: TpiError) -> None:
        """In the slices' thread: the model's file cannot be read, or the worker asked for what it has not."""
        self.finish(LinkError(f"{self.title} cannot get its shard: {error}"))

    def _stop_serving(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
