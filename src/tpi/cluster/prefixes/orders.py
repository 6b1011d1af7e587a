"""What ranks are to do with a beginning of a text: save it, check what they have saved, put it back, forget old files.
Travels as MessagePack between passes (``mesh/passframes.py``). Pure data.
"""

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec

from tpi.config import MAX_PARALLEL
from tpi.errors import ProtocolError
from tpi.runtime.passes import BLOCK_CELLS, MAX_COPIES, Copies
from tpi.runtime.prefix import Prefix
from tpi.runtime.recurrent import StateMark

MAX_STATES = 66
MAX_BLOCKS = 1 << 19
FileName: TypeAlias = Annotated[
    str, msgspec.Meta(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!part-))*\Z")
]
"""Without parts of a path, and of no form that ranks have for their own files."""
SaveId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


class Action(StrEnum):
    SAVE = "save"
    CHECK = "check"
    """Tells whether ``RESTORE`` can be done; changes nothing."""
    RESTORE = "restore"
    PRUNE = "prune"
    """Removes what was saved with this ID."""


class PrefixOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first ``n_tokens`` of a text, in blocks that begin with ``cells``; beside cells they are those of
    ``sequence``, with the states ``marks``. ``save_id`` is common to the files of all ranks. The first ``n_present``
    tokens, whole blocks, are in their cells already. ``copies`` are made before."""

    action: Action
    name: FileName
    save_id: SaveId
    sequence: Annotated[int, msgspec.Meta(ge=0, lt=MAX_PARALLEL)] = 0
    n_tokens: Number = 0
    cells: Annotated[tuple[Number, ...], msgspec.Meta(max_length=MAX_BLOCKS)] = ()
    marks: Annotated[tuple[StateMark, ...], msgspec.Meta(max_length=MAX_STATES)] = ()
    n_present: Number = 0
    copies: Copies = Copies()
    number: Number = 0
    """Of the answer."""

    @property
    def prefix(self) -> Prefix:
        return Prefix(self.sequence, self.n_tokens, self.cells, self.marks)


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[PrefixOrder] = msgspec.msgpack.Decoder(PrefixOrder)


def encode_order(order: PrefixOrder) -> bytes:
    return _encoder.encode(order)


def decode_order(content: bytes, n_cells: int, n_sequences: int) -> PrefixOrder:
    """Of a plan with so many.

    Raises:
        ProtocolError: it is none, or does not fit the plan.
    """
    try:
        order = _decoder.decode(content)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"an order for a prefix cannot be understood: {error}") from None
    copies = order.copies
    has_cells = order.action in (Action.SAVE, Action.RESTORE)
    fits = (
        all(first % BLOCK_CELLS == 0 and first + BLOCK_CELLS <= n_cells for first in order.cells)
        and len(order.cells) == (-(-order.n_tokens // BLOCK_CELLS) if has_cells else 0)
        and order.n_tokens <= n_cells
        and order.n_present % BLOCK_CELLS == 0
        and order.n_present <= order.n_tokens
        and order.sequence < n_sequences
        and all(0 < mark.n_tokens <= order.n_tokens for mark in order.marks)
        and max(len(copies.cells), len(copies.sequences)) <= MAX_COPIES
        and all(
            min(copy.source, copy.target) >= 0 < copy.n_cells
            and max(copy.source, copy.target) + copy.n_cells <= n_cells
            for copy in copies.cells
        )
        and all(
            min(copy.source, copy.target) >= 0 and max(copy.source, copy.target) < n_sequences
            for copy in copies.sequences
        )
    )
    if not fits:
        raise ProtocolError(f"an order for a prefix of {order.n_tokens} tokens does not fit the plan")
    return order
