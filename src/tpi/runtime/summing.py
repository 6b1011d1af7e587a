"""The sums of one rank's passes: what a block gave goes to the ranks that need it, and what they all gave is added to
the residual stream, or kept. Where ranks have chosen experts, the sum says whether all have chosen alike.

Owns nothing. The thread of passes.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from tpi.errors import ProtocolError
from tpi.model.flow import Flow
from tpi.runtime.experts import Ids, chose_alike, hash_bits
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep
from tpi.runtime.rankmodel import HASH_VALUES
from tpi.runtime.times import RankTimes
from tpi.runtime.turns import Turn
from tpi.runtime.workspace import Workspace

_CHOICE_BLOCKS, _AGAIN_BLOCKS = 1 << 30, 1 << 31
"""Added to a block's index in frames that agree upon a choice, and in those of the sum that is made anew with it."""


@dataclass
class Part:
    """A run of the pass's rows, and its sum that is under way, if one is, with its start."""

    number: int
    start: int
    stop: int
    summing: tuple[SumStep, Turn, float] | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def n_rows(self) -> int:
        return self.stop - self.start


class Summing:
    """Begins and ends the sums of parts."""

    def __init__(self, workspace: Workspace, allreduce: Allreduce, times: RankTimes) -> None:
        self._workspace, self._allreduce, self._times = workspace, allreduce, times
        self._rank = workspace.model.rank

    def start(self, pass_id: int, turn: Turn, part: Part, partial: Float32Array | None, is_again: bool = False) -> None:
        """Begins to sum what was computed for ``part``; None where this rank has computed nothing."""
        started, arrays = self._times.now("sum"), self._workspace.arrays
        if turn.hands_over and partial is not None:
            np.add(partial, arrays.residual[part.rows], out=partial)
        if turn.says_choice and partial is not None:
            partial = self._with_choice(turn, part, partial)
        if turn.block.leaves is not None and partial is not None:
            partial = self._without_left(turn, part, partial)
        flow = msgspec.structs.replace(turn.flow, block=turn.flow.block + _AGAIN_BLOCKS) if is_again else turn.flow
        step = SumStep(pass_id, flow, part.number)
        total = arrays.total(turn.width, part.start, part.stop) if turn.is_received else None
        self._allreduce.start(step, partial, total)
        part.summing = step, turn, started
        self._times.waited(started, turn.block.index, part.number)

    def finish(self, part: Part) -> bool:
        """Ends the sum that is under way, if one is: it becomes part of the residual stream. False: ranks have chosen
        differently, and nothing has become of it."""
        if part.summing is None:
            return True
        started = self._times.now("sum")
        (step, turn, began), part.summing = part.summing, None
        self._allreduce.finish(step)
        is_sound = self._add(turn, part)
        self._times.waited(started, turn.block.index, part.number)
        self._times.summed(began, turn.block.index, part.number)
        return is_sound

    def agree(self, pass_id: int, turn: Turn, part: Part, chosen: Ids | None) -> Ids | None:
        """After a sum of different choices: that of the lowest contributor, ``chosen`` having been this rank's. None on
        ranks that only need the sum.

        Raises:
            ProtocolError: what arrives names no experts.
        """
        contributors = turn.flow.contributors
        if chosen is None:
            return None
        experts = turn.block.experts
        assert experts is not None and self._rank in contributors
        flow = Flow(turn.flow.block + _CHOICE_BLOCKS, contributors[:1], contributors, is_handed_over=True)
        step = SumStep(pass_id, flow, part.number)
        own = np.ascontiguousarray(chosen, np.float32) if self._rank == contributors[0] else None
        out = np.zeros(chosen.shape, np.float32)
        self._allreduce.start(step, own, out)
        self._allreduce.finish(step)
        agreed = out.astype(np.int32)
        are_there = ((agreed == out) & (agreed >= 0) & (agreed < experts.n)).all()
        if not (are_there and (np.diff(np.sort(agreed, axis=1), axis=1) > 0).all()):
            raise ProtocolError(
                f"rank {contributors[0]} chose experts that block {turn.block.index} does not have, or one twice"
            )
        return agreed

    def _with_choice(self, turn: Turn, part: Part, partial: Float32Array) -> Float32Array:
        arrays, experts = self._workspace.arrays, turn.block.experts
        assert experts is not None
        wide = arrays.partial(turn.width, part.start, part.stop)
        wide[:, :-HASH_VALUES] = partial
        wide[:, -HASH_VALUES:] = hash_bits(arrays.chosen(experts.n_used, part.start, part.stop))
        return wide

    def _without_left(self, turn: Turn, part: Part, partial: Float32Array) -> Float32Array:
        """What is summed of a block's result; the rest is put where the next one finds it."""
        arrays, n_summed = self._workspace.arrays, turn.width
        np.copyto(arrays.left(partial.shape[1] - n_summed, part.start, part.stop), partial[:, n_summed:])
        summed = arrays.partial(n_summed, part.start, part.stop)
        np.copyto(summed, partial[:, :n_summed])
        return summed

    def _add(self, turn: Turn, part: Part) -> bool:
        if not turn.is_received:
            return True
        residual = self._workspace.residual[part.rows]
        total = self._workspace.arrays.total(turn.width, part.start, part.stop)
        if turn.says_choice and not chose_alike(total[:, -HASH_VALUES:], len(turn.flow.contributors)):
            return False
        if turn.block.is_kept:
            return True
        if turn.flow.is_handed_over:
            np.copyto(residual, total[:, : residual.shape[1]])
        else:
            np.add(residual, total[:, : residual.shape[1]], out=residual)
        return True
