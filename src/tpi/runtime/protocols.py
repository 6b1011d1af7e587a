"""What the runtime needs of the parts around it, as Protocols; ``weights`` and ``cluster`` satisfy them.

Holds no code that does anything. The thread that runs a pass is the one that calls these methods.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
"""C-contiguous float32; the shape is said where it is used."""


class SumStep(msgspec.Struct, frozen=True):
    """Names one allreduce: all ranks call it with equal steps, in the same order."""

    pass_id: int
    block: int
    """Index of the block in execution order."""
    contributors: tuple[int, ...]
    """Ranks that hold a part of the block, ascending, at least one."""


class Allreduce(Protocol):
    """Adds up the partial results of one block over all ranks."""

    def sum(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> None:
        """Write the sum of the contributors' partial results into ``out``, with the same bits on every rank.

        ``partial`` and ``out`` are C-contiguous ``[n_tokens, n_embd]``; ``partial`` is None exactly on ranks that
        are not among the contributors. ``out`` may be the same memory as ``partial``. Both stay the caller's; nothing
        refers to them after the call. Blocks until every rank has taken part.

        Each contribution passes through the payload format, the own one included; they are added in float32 in rank
        order; the total passes through the payload format once more. With a single rank in all, ``out`` is ``partial``.

        Raises NumericError on every rank when a contribution or the total is not finite, LinkError when a peer is
        lost or the link was shut down, ProtocolError when a peer is at another step.
        """


class HeldPiece(Protocol):
    """A piece in memory: the address of each of its parts, valid while it is held."""

    @property
    def part_addresses(self) -> tuple[int, ...]: ...


class PieceWindow(Protocol):
    """The memory for weights."""

    def hold(self, index: int) -> AbstractContextManager[HeldPiece]:
        """Wait until piece ``index`` of the shard is in memory, and keep it there inside the ``with``.

        Pieces are held in execution order, pass after pass; some may be skipped. Raises ModelFileError when the
        piece cannot be read.
        """

    def try_resident(self) -> Sequence[HeldPiece] | None:
        """All pieces, if they are in memory and stay there until the window is closed; None otherwise. Then nothing
        need be held any more.
        """
