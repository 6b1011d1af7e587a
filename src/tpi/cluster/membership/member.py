"""A worker as the master sees it: its control link, what it offered, and how far it is.

Callbacks run in the threads of the control link and of the slices, and only put things where the forming thread looks.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import TypeAlias

from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import (
    AnyMessage,
    Failed,
    FetchRun,
    Goodbye,
    Offer,
    OpenData,
    Plan,
    StatusReply,
    StatusRequest,
    one_line,
)
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.acceptor import AcceptedLink
from tpi.cluster.reports import RankStatus
from tpi.cluster.transfer.slices import RunServer
from tpi.errors import LinkError, ProtocolError, TpiError
from tpi.gguf.reader import Gguf

Deliver: TypeAlias = "Callable[[Member, AnyMessage | LinkError], None]"


class Member:
    """One worker, from its control link on. ``deliver`` gets what concerns the forming of the cluster, and its end."""

    def __init__(self, link: AcceptedLink, deliver: Deliver) -> None:
        self.name = link.device.name
        self.rank = -1
        self.offer: Offer | None = None
        self.data: DataLink | None = None
        self.server: RunServer | None = None
        self.end: LinkError | None = None
        """Why this worker is of no more use."""
        self._deliver = deliver
        self._answered = threading.Condition()
        self._asked = 0
        self._reply: StatusReply | None = None
        self.control = ControlLink(link.socket, f"{self.name} ({link.address})", None, self._on_message, self._on_lost)

    def close(self) -> None:
        """Ends links and threads; what is queued is sent first. Idempotent."""
        self.control.close()
        if self.server is not None:
            self.server.close()
        if self.data is not None:
            self.data.close()

    def take_offer(self, message: AnyMessage) -> None:
        """The first message of a worker.

        Raises:
            ProtocolError: it is something else.
        """
        if not isinstance(message, Offer):
            raise ProtocolError(f"{self.name} sent {type(message).__name__} before its offer")
        self.offer = message

    def send_plan(self, plan: Plan, gguf: Gguf) -> None:
        """Tells the worker its rank, and answers its requests for slices from now on.

        Raises:
            LinkError: the worker is gone.
        """
        self.rank = plan.rank
        self.server = RunServer(self.control, gguf, plan.spec, self._on_slices_failed)
        self.control.send(plan)

    def ask_for_data(self, epoch: int, token: bytes) -> None:
        """Asks for the data link.

        Raises:
            LinkError: the worker is gone.
        """
        self.control.send(OpenData(epoch, token))

    def dismiss(self, reason: str) -> None:
        """Says goodbye, with a reason unless all is well, and closes."""
        with contextlib.suppress(LinkError):
            self.control.send(Goodbye(one_line(reason)))
        self.close()

    def request_status(self) -> int:
        """Asks for figures; the number belongs to ``wait_status``.

        Raises:
            LinkError: the worker is gone.
        """
        with self._answered:
            self._asked += 1
            number = self._asked
        self.control.send(StatusRequest(number))
        return number

    def wait_status(self, number: int, timeout_s: float) -> RankStatus | None:
        """The answer to the request, or None when none came in time or the worker is gone."""

        def is_answered() -> bool:
            return self._reply is not None and self._reply.number >= number

        with self._answered:
            self._answered.wait_for(lambda: is_answered() or self.end is not None, timeout_s)
            return self._reply.status if self._reply is not None and is_answered() else None

    def _on_message(self, message: AnyMessage) -> None:
        match message:
            case FetchRun():
                if self.server is not None:
                    self.server.request(message)
            case StatusReply():
                with self._answered:
                    self._reply = message
                    self._answered.notify_all()
            case Failed():
                self._finish(LinkError(f"{self._title()} cannot go on: {one_line(message.reason)}"))
            case _:
                self._deliver(self, message)

    def _on_lost(self, error: LinkError) -> None:
        self._finish(LinkError(f"{self._title()} is gone: {error}"))

    def _on_slices_failed(self, error: TpiError) -> None:
        """In the slices' thread: the model's file cannot be read, or the worker asked for what it has not."""
        self._finish(LinkError(f"{self._title()} cannot get its shard: {error}"))

    def _finish(self, error: LinkError) -> None:
        """The first reason counts, and is delivered once; a pass under way ends at once."""
        with self._answered:
            if self.end is not None:
                return
            self.end = error
            self._answered.notify_all()
        if self.data is not None:
            self.data.shut_down()
        self._deliver(self, error)

    def _title(self) -> str:
        return f"{self.name} (rank {self.rank})" if self.rank > 0 else self.name
