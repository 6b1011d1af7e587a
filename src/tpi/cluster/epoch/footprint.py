"""What the parts of a rank take in memory, counted before they are used. Keeps no state.

The workspace is made for that, but only as addresses: the system gives it memory as it is used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tpi.cluster.mesh.datapath import frame_bytes
from tpi.cluster.mesh.passframes import PassLimits
from tpi.planner.chunks import PassLoad
from tpi.planner.memory import MASTER_GROWTH_BYTES, WORKER_GROWTH_BYTES, Needs, minimum_bytes
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.passes import TILED_TOKENS
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.weights.layout import Piece
from tpi.weights.streaming.pins import PieceSizes

WORKER_PROCESS_BYTES = 60_000_000
"""A worker before it has a workspace, at least; measured: 53 MB, and 5 for what describes a 70B model."""
DESCRIPTION_BYTES = 5_000_000
"""That description, for workers that tell what they have without it."""

_CHEAP = 0.05
"""The part of a window that longer passes may cost: every token of an answer pays for it, with more that is read."""

_LITTLE_MORE = 0.1
"""The part by which reading may grow for a longer context that nobody has insisted on."""

_F16_BYTES, _F32_BYTES = 2, 4


@dataclass(frozen=True)
class Claim:
    """A rank's slice, what the pieces take in its window, the memory that its process has and may have, and what its
    window may have at most, where somebody said so."""

    model: RankModel
    piece_bytes: Sequence[int]
    process_bytes: int
    limit_bytes: int
    window_limit_bytes: int | None = None
    _rooms: dict[tuple[RankSettings, Repacker | None], int] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def sizes(self) -> PieceSizes:
        """The pieces as its window sees them."""
        return piece_sizes(self.model, self.piece_bytes)

    @property
    def two_pieces_bytes(self) -> int:
        """A window in which one piece is read while the other is used."""
        sizes = self.sizes
        dense = (size for index, size in enumerate(sizes.sizes) if index not in sizes.on_demand)
        return sizes.minimum_bytes + max(dense, default=0)

    def room_bytes(self, settings: RankSettings, repacker: Repacker | None = None) -> int:
        """What is left for the window; counted once for the same settings."""
        if (settings, repacker) not in self._rooms:
            with Workspace(self.model, settings, repacker) as workspace:
                least = minimum_bytes(needs_of(workspace, self.process_bytes), 0)
            self._rooms[settings, repacker] = self.limit_bytes - least
        return self._rooms[settings, repacker]

    def wanted_window_bytes(self, usual_bytes: int) -> int:
        """What somebody said that the window should have; or else room for two pieces, and for as much that little more
        is read than if ``usual_bytes`` were left for it. If no weights had to be read then, none have to be."""
        if self.window_limit_bytes is not None:
            return min(self.window_limit_bytes, self.sizes.total_bytes)
        window = self.window_bytes(usual_bytes)
        streamed_bytes = self.sizes.total_bytes - window
        return max(self.two_pieces_bytes, window - int(_LITTLE_MORE * streamed_bytes))

    def window_bytes(self, room_bytes: int) -> int:
        """What the window takes of the memory that is left for it."""
        window = min(room_bytes, sum(self.piece_bytes))
        return window if self.window_limit_bytes is None else min(window, self.window_limit_bytes)


def piece_sizes(model: RankModel, piece_bytes: Sequence[int]) -> PieceSizes:
    """The rank's pieces, of so many bytes, as its window sees them."""
    return PieceSizes(tuple(piece_bytes), model.on_demand, model.least_slots)


def chunk_tokens(claims: Iterable[Claim], settings: RankSettings, repacker: Repacker | None = None) -> int:
    """How many tokens a pass should have at most: ``settings.max_tokens``, or, where that leaves a rank too little for
    two pieces of weights, so that one is read while the other is used, fewer."""
    small = min(settings.max_tokens, TILED_TOKENS)
    is_tight = any(claim.room_bytes(settings, repacker) < claim.two_pieces_bytes for claim in claims)
    return small if is_tight else settings.max_tokens


def pass_load(claim: Claim, settings: RankSettings) -> PassLoad:
    """What the rank reads and computes in passes of ``settings``; the head is left out, as only the last pass of a
    prompt needs it."""
    model, head = claim.model, len(claim.model.blocks) - 1
    sizes = claim.sizes
    pins = sizes.plan(max(claim.window_bytes(claim.room_bytes(settings)), sizes.minimum_bytes))
    pieces = [piece for piece in model.pieces if piece.block != head]
    return PassLoad(
        streamed_bytes=sum(claim.piece_bytes[piece.index] for piece in pieces if piece.index not in pins.pinned),
        flop_per_token=2 * round(sum(_values_used(model, piece) for piece in pieces)),
    )


def _values_used(model: RankModel, piece: Piece) -> float:
    """Weights of a piece that a token is multiplied with, at the average: experts are chosen."""
    n_values = sum(part.n_rows * part.n_columns for part in piece.parts)
    experts = model.blocks[piece.block].experts
    return n_values if piece.expert is None or experts is None else n_values * experts.n_used / experts.n


def are_cheap(claims: Iterable[Claim], settings: RankSettings, n_tokens: int) -> bool:
    """Whether passes of ``n_tokens`` instead of ``settings.max_tokens`` leave every rank room for two pieces, most of
    its window, and all of its weights in memory if they are now."""
    longer = replace(settings, max_tokens=n_tokens)
    return all(_is_cheap(claim, claim.room_bytes(settings), claim.room_bytes(longer)) for claim in claims)


def _is_cheap(claim: Claim, room_bytes: int, longer_room_bytes: int) -> bool:
    window, left = claim.window_bytes(room_bytes), claim.window_bytes(longer_room_bytes)
    is_resident = window == sum(claim.piece_bytes)
    return longer_room_bytes >= claim.two_pieces_bytes and left >= (window if is_resident else (1 - _CHEAP) * window)


def needs_of(workspace: Workspace, process_bytes: int, tokenizer_bytes: int = 0) -> Needs:
    """The needs of the rank that ``workspace`` was made for, in a process that has ``process_bytes`` without it."""
    model, settings = workspace.model, workspace.settings
    activations = workspace.activation_bytes
    if model.rank == 0:
        activations += settings.max_tokens * model.embedding_width * _F32_BYTES
    return Needs(
        process_bytes=process_bytes,
        kv_bytes=workspace.cache.n_bytes,
        states_bytes=workspace.states.n_bytes,
        graphs_bytes=workspace.compute.scratch_bytes + workspace.graphs.kept_bytes,
        activations_bytes=activations,
        links_bytes=_link_bytes(model, settings),
        logits_bytes=_logits_bytes(model, settings),
        growth_bytes=WORKER_GROWTH_BYTES if model.rank else MASTER_GROWTH_BYTES,
        tokenizer_bytes=tokenizer_bytes,
    )


def limits_of(model: RankModel, settings: RankSettings) -> PassLimits:
    """What passes can have."""
    spec = model.spec
    return PassLimits(
        settings.max_tokens,
        settings.n_cells,
        settings.n_sampled,
        spec.n_vocab,
        model.embedding_width,
        settings.n_sequences,
    )


def few_tokens(settings: RankSettings) -> int:
    """Up to so many rows are summed as when an answer grows."""
    return settings.n_sampled


def _link_bytes(model: RankModel, settings: RankSettings) -> int:
    """Frames of passes, and the payloads of sums: any algorithm's for a few rows, for many those of the ones that need
    the least (see ``Algorithm.n_buffered_values``)."""
    n_ranks = model.partition.n_ranks
    if n_ranks == 1:
        return 0
    first = model.embedding_ranks
    begins = any(rank != 0 for rank in first) if model.rank == 0 else model.rank in first
    frames = frame_bytes(limits_of(model, settings), begins, model.rank == 0)
    if all(flow.is_local or model.rank not in flow.participants for flow in model.flows):
        return frames
    few = n_ranks * few_tokens(settings) * (settings.n_parts if model.max_left_width else 1)
    many = 2 * (settings.part_tokens + (settings.max_tokens // 2 if settings.n_parts > 1 else 0))
    return frames + round((few + many) * model.max_sum_width * settings.wire_bytes)


def _logits_bytes(model: RankModel, settings: RankSettings) -> int:
    """In frames and, on the master, put together: where all of a row is wanted, which comes in 16 bits, or in 32 where
    rows may depend on nothing else."""
    rows = [share.first.size for share in model.partition.shares[-1]]
    sent_bytes = _F32_BYTES if settings.is_reproducible else _F16_BYTES
    held = model.spec.n_vocab * _F32_BYTES + sum(rows[1:]) * sent_bytes if model.rank == 0 else 0
    return settings.n_sampled * (held or rows[model.rank] * sent_bytes)
