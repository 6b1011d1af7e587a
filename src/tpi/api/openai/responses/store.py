"""Responses that are kept, so that later ones can go on from them. In memory, bounded; on the server's loop alone."""

import functools
import json
from collections import OrderedDict
from dataclasses import dataclass

from tpi.api.streams import Body
from tpi.engine.turns import Message

MAX_KEPT = 512
MAX_KEPT_BYTES = 16 << 20


@dataclass(frozen=True)
class Kept:
    """A response's body, and all that was said up to its end, without instructions."""

    body: Body
    messages: tuple[Message, ...]

    @functools.cached_property
    def n_bytes(self) -> int:
        """About what it takes in memory."""
        texts = sum(
            len(text.encode("utf-8", "replace"))
            for message in self.messages
            for text in (message.content, message.reasoning, *(call.arguments for call in message.tool_calls))
        )
        return texts + len(json.dumps(self.body))


class ResponseStore:
    """What was not asked for longest goes first."""

    def __init__(self, max_kept: int = MAX_KEPT, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_kept, self._max_bytes = max_kept, max_bytes
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._n_bytes = 0

    def keep(self, kept: Kept) -> None:
        """As long as there is room; what is too large for all of it is not kept at all."""
        if kept.n_bytes > self._max_bytes:
            return
        self._kept[kept.body["id"]] = kept
        self._n_bytes += kept.n_bytes
        while self._kept and (len(self._kept) > self._max_kept or self._n_bytes > self._max_bytes):
            self.drop(next(iter(self._kept)))

    def find(self, response: str) -> Kept | None:
        if response in self._kept:
            self._kept.move_to_end(response)
        return self._kept.get(response)

    def drop(self, response: str) -> bool:
        """Whether it was there."""
        kept = self._kept.pop(response, None)
        self._n_bytes -= kept.n_bytes if kept is not None else 0
        return kept is not None
