"""What one rank holds of a model, what it keeps of sequences, and how large passes are. Pure data and arithmetic."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from tpi.gguf.types import F16, TensorType
from tpi.model.blocks import Block
from tpi.model.flow import Flow, first_members, flows_of
from tpi.model.inputs import PLAIN, ModelInputs
from tpi.model.partition import Partition
from tpi.model.spans import Share
from tpi.model.spec import ModelSpec
from tpi.model.states import FULL, KvState, RecurrentState, State
from tpi.runtime.kvcache import CacheExtent
from tpi.runtime.passes import TILED_TOKENS
from tpi.weights.layout import Piece

N_SPLIT_TOKENS = 2 * TILED_TOKENS
"""From so many tokens on a pass is computed in two parts, if it may be: half of them take the faster kernels."""

N_KV_STEP = 256
"""The number of cells that a graph sees is rounded up to this, so that few graph shapes exist."""

HASH_VALUES = 32
"""Values that a sum of experts carries beside its vectors: the bits of what was chosen."""


@dataclass(frozen=True)
class RankSettings:
    """``max_tokens`` per pass, ``n_cells`` of KV cache and their type, ``n_threads`` that compute."""

    max_tokens: int
    n_cells: int
    n_threads: int
    kv_type: TensorType = F16
    max_sampled: int | None = None
    """Rows of a pass whose logits may be wanted; None: all."""
    n_parts: int = 1
    """In so many parts a long pass is computed, so that one can be summed while the next is computed: 1 or 2."""
    wire_bytes: float = 2.0
    """Of a value on its way to other ranks."""
    n_sequences: int = 1
    """How many sequences sliding windows and recurrent states are kept for."""
    n_kept_states: int = 0
    """Recurrent states of each that are kept beside the latest."""
    is_reproducible: bool = False
    """What is computed of a sequence depends on nothing else in a pass, nor on how it was cut into passes, bit for
    bit."""

    @property
    def n_sampled(self) -> int:
        """The most rows that the head computes."""
        return self.max_tokens if self.max_sampled is None else min(self.max_sampled, self.max_tokens)

    @property
    def part_tokens(self) -> int:
        """The most rows that are computed at once."""
        if self.n_parts == 1:
            return self.max_tokens
        return min(self.max_tokens, max(N_SPLIT_TOKENS - 1, -(-self.max_tokens // 2), self.n_sampled))

    def ring_cells(self, window: int) -> int:
        """Cells that a sequence has in the caches of blocks with this window: for what the first token of the longest
        pass sees, and for all tokens of the pass."""
        return min(self.n_cells, -(-(window + self.max_tokens) // N_KV_STEP) * N_KV_STEP)

    def cells_of(self, window: int) -> int:
        """Cells in the caches of blocks with this window, of all sequences."""
        return self.n_cells if window == FULL else self.n_sequences * self.ring_cells(window)


@dataclass(frozen=True)
class Attention:
    """A rank's part of it in one block: query heads, values of a cell in keys and in values, and how many query heads
    share each KV head and nothing tells apart, 1 if not all are shared by as many."""

    n_heads: int
    key_width: int
    value_width: int
    value_dim: int
    n_sharing: int


@dataclass(frozen=True)
class RankModel:
    """What one rank holds of a model. ``pieces`` are in execution order."""

    spec: ModelSpec
    blocks: tuple[Block, ...]
    partition: Partition
    rank: int
    pieces: tuple[Piece, ...]
    inputs: ModelInputs = PLAIN

    @cached_property
    def flows(self) -> tuple[Flow, ...]:
        """What happens after every block."""
        return flows_of(self.blocks, self.partition)

    @property
    def embedding_width(self) -> int:
        """Values that enter for every token."""
        return self.spec.n_embd + self.inputs.n_looked_up

    @cached_property
    def embedding_ranks(self) -> tuple[int, ...]:
        """The ranks that need them: where the residual stream begins, or all that look something up for every token."""
        if not self.inputs.n_looked_up:
            return first_members(self.blocks, self.partition)
        return tuple(sorted({rank for flow in self.flows for rank in flow.participants}))

    @cached_property
    def pieces_of(self) -> Mapping[int, tuple[Piece, ...]]:
        """The pieces of every block that the rank holds some of."""
        return {block: tuple(group) for block, group in groupby(self.pieces, key=lambda piece: piece.block)}

    def share(self, block: int) -> Share:
        """The rank's part of a block."""
        return self.partition.shares[block][self.rank]

    def state_of(self, block: Block) -> State | None:
        """What the block keeps, or the one that it looks at."""
        source = block if block.reads_state_of is None else self.blocks[block.reads_state_of]
        return source.state

    def sum_width(self, block: Block) -> int:
        """Values of a row of the sum after the block. Of experts, ranks say in it what they have chosen."""
        if block.leaves is not None:
            return block.leaves.n_summed
        flow = self.flows[block.index]
        says_choice = block.experts is not None and len(flow.contributors) > 1
        return block.n_vectors * self.spec.n_embd + (HASH_VALUES if says_choice else 0)

    @property
    def max_sum_width(self) -> int:
        """No sum is wider, whoever holds which part of a block."""
        n_embd = self.spec.n_embd
        return max(
            block.n_vectors * n_embd + (HASH_VALUES if block.experts is not None else 0) for block in self.blocks
        )

    @property
    def max_partial_width(self) -> int:
        """Values of a row of a rank's part of a sum, at most, where a graph does not give just that."""
        blocks = (self.blocks[index] for index in self.pieces_of)
        widths = (self.sum_width(block) for block in blocks if block.experts is not None or block.leaves is not None)
        return max(widths, default=0)

    def left_before(self, block: Block) -> tuple[int, ...]:
        """Values of the parts that the block before has left on this rank; none if it has ended in no middle."""
        before = self.blocks[block.index - 1].leaves if block.index else None
        return () if before is None else before.widths(self.share(block.index))

    @property
    def max_left_width(self) -> int:
        """Values of a row that a block leaves on this rank, at most."""
        return max((sum(self.left_before(self.blocks[index])) for index in self.pieces_of), default=0)

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Of all blocks that the rank attends in."""
        found = {state.window for block, state in self._states() if isinstance(state, KvState)}
        return tuple(sorted(found))

    def attention(self, window: int) -> list["Attention"]:
        """Of all blocks that the rank attends in with this window."""
        found = []
        for index in self.pieces_of:
            state, share = self.state_of(self.blocks[index]), self.share(index)
            if isinstance(state, KvState) and state.window == window and share.first.size:
                runs = state.runs(share)
                n_sharing = runs[0][0].size // runs[0][1].size if len(runs) == 1 and not state.has_sinks else 1
                found.append(Attention(share.first.size, *state.widths(share), state.value_dim, n_sharing))
        return found

    def _states(self) -> Iterator[tuple[Block, State]]:
        """The blocks that keep something here."""
        for block in self.blocks:
            if block.state is not None and self.share(block.index).first.size:
                yield block, block.state

    def cache_extents(self, settings: RankSettings) -> dict[int, CacheExtent]:
        """What the rank's KV cache has of every block."""
        return {
            block.index: CacheExtent(
                *state.widths(self.share(block.index)), settings.cells_of(state.window), state.window != FULL
            )
            for block, state in self._states()
            if isinstance(state, KvState)
        }

    def state_sizes(self) -> dict[int, tuple[int, ...]]:
        """Values of the parts of every recurrent state that the rank keeps."""
        return {
            block.index: state.sizes(self.share(block.index))
            for block, state in self._states()
            if isinstance(state, RecurrentState)
        }

    @cached_property
    def on_demand(self) -> frozenset[int]:
        """Indexes of the pieces that are experts."""
        return frozenset(piece.index for piece in self.pieces if piece.expert is not None)

    @property
    def least_slots(self) -> int:
        """Of a window for experts: what a token chooses is there at once."""
        return max(1, self.max_experts_used)

    @property
    def max_experts_used(self) -> int:
        """That a token chooses in a block of which the rank holds some."""
        blocks = (self.blocks[index] for index in self.pieces_of)
        return max((block.experts.n_used for block in blocks if block.experts is not None), default=0)
