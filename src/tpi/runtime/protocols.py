"""What the runtime needs of the parts around it, as Protocols; ``weights`` and ``cluster`` satisfy them.

Holds no code that does anything. The thread that runs a pass is the one that calls these methods.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tpi.model.flow import Flow

Float32Array: TypeAlias = npt.NDArray[np.float32]
"""C-contiguous float32; the shape is said where it is used."""


class SumStep(msgspec.Struct, frozen=True):
    """Names one sum: all ranks that take part begin equal steps in the same order."""

    pass_id: int
    flow: Flow
    part: int = 0
    """Which run of the pass's rows, where they are summed in two: 0 or 1."""

    def __str__(self) -> str:
        return f"block {self.flow.block} of pass {self.pass_id}"


class NativeSum(Protocol):
    """What carries sums of one flow through in C: the struct that ``sum_start`` of the helper takes."""

    @property
    def library(self) -> Any:
        """The helper's functions."""

    @property
    def address(self) -> int:
        """Of the struct; valid as long as the allreduce."""

    def type_of(self, flow: Flow) -> tuple[int, float]:
        """In what payload type values travel, and the largest magnitude that it holds."""

    def raise_for(self, result: int, step: SumStep) -> NoReturn:
        """Raises what a result other than 0 of the helper means, as ``Allreduce.finish`` would."""


class Allreduce(Protocol):
    """Adds up the partial results of one block over the ranks that hold parts of it."""

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        """Begins a sum whose result will be in ``out``: sends what can be sent, and waits for nothing but the end of
        sums of other blocks.

        Arrays are C-contiguous ``[n_tokens, n_embd]``. ``partial`` is None exactly on ranks that are not among the
        contributors, ``out`` on those that are not among the receivers. ``partial`` may change afterwards; ``out``
        must not be touched before :meth:`finish`, and may be the same memory as ``partial``. At most one sum of each
        part is under way, and of both parts the one that began first is finished first.

        Raises LinkError when a peer is lost or the links were shut down, ProtocolError when a peer sends what cannot
        be, and what a sum ends with that it has waited for.
        """

    def finish(self, step: SumStep) -> None:
        """Blocks until ``out`` of the step that began last for its part has the sum, the same bits on every receiver.

        Each contribution passes through the payload format, the own one included, and in which order they are added
        the algorithm declares. Where a flow is handed over, the format is float32; where it is local, ``out`` is
        ``partial``.

        Raises NumericError on every receiver when a contribution or the total is not finite; otherwise as
        :meth:`start`.
        """

    def native(self, flow: Flow, n_values: int) -> NativeSum | None:
        """What carries sums of so many values through in C; None if nothing does."""


class HeldPiece(Protocol):
    """A piece in memory: the address of each of its parts, valid while it is held."""

    @property
    def part_addresses(self) -> tuple[int, ...]: ...


class PieceWindow(Protocol):
    """The memory for weights."""

    def hold(self, index: int, hints: Sequence[int] = ()) -> AbstractContextManager[HeldPiece]:
        """Wait until piece ``index`` of the shard is in memory, and keep it there inside the ``with``.

        Pieces that every pass needs are held in execution order, pass after pass; some may be skipped. Pieces of
        experts are held in any order; ``hints`` names those that will be held next, which may begin to be read.
        Raises ModelFileError when the piece cannot be read.
        """

    def try_resident(self) -> Sequence[HeldPiece] | None:
        """All pieces, if they are in memory and stay there until the window is closed; None otherwise. Then nothing
        need be held any more.
        """
