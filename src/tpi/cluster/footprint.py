"""What the parts of a rank take in memory, counted before they are used. Keeps no state.

The workspace is made for that, but only as addresses: the system gives it memory as it is used.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tpi.cluster.datapath import master_frame_bytes, worker_frame_bytes
from tpi.planner.memory import MASTER_GROWTH_BYTES, WORKER_GROWTH_BYTES, Needs, minimum_bytes
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.kvcache import KvCache
from tpi.runtime.workspace import RankModel, RankSettings, Workspace

SMALL_CHUNK_TOKENS = 64
"""Shorter passes take other kernels, which are slower per token."""

WORKER_PROCESS_BYTES = 60_000_000
"""A worker before it has a workspace, for who cannot ask it; measured: 53 MB, and 5 for what describes a 70B model."""

AMPLE_BYTES = 4 << 30
"""With so much, nobody needs to count whether passes are too long."""

_F32_BYTES = 4


@dataclass(frozen=True)
class Claim:
    """A rank's slice, what the pieces take in its window, and the memory that its process has and may have."""

    model: RankModel
    piece_bytes: Sequence[int]
    process_bytes: int
    limit_bytes: int


def chunk_tokens(claims: Iterable[Claim], settings: RankSettings, repacker: Repacker | None = None) -> int:
    """How many tokens a pass should have at most: ``settings.max_tokens``, or, where that leaves a rank too little for
    two pieces of weights, so that one is read while the other is used, fewer."""
    small = min(settings.max_tokens, SMALL_CHUNK_TOKENS)
    is_tight = any(not _fits(claim, settings, repacker) for claim in claims)
    return small if is_tight else settings.max_tokens


def _fits(claim: Claim, settings: RankSettings, repacker: Repacker | None) -> bool:
    with Workspace(claim.model, settings, repacker) as workspace:
        needs = needs_of(workspace, claim.process_bytes)
    return claim.limit_bytes >= minimum_bytes(needs, 2 * max(claim.piece_bytes, default=0))


def needs_of(workspace: Workspace, process_bytes: int, tokenizer_bytes: int = 0) -> Needs:
    """The needs of the rank that ``workspace`` was made for, in a process that has ``process_bytes`` without it."""
    model, settings = workspace.model, workspace.settings
    activations = workspace.activation_bytes
    if model.rank == 0:
        activations += settings.max_tokens * model.spec.n_embd * _F32_BYTES
    return Needs(
        process_bytes=process_bytes,
        kv_bytes=KvCache.bytes_for(model.kv_widths(), settings.n_cells, settings.kv_type),
        graphs_bytes=workspace.compute.scratch_bytes,
        activations_bytes=activations,
        links_bytes=_link_bytes(model, settings),
        logits_bytes=_logits_bytes(model, settings),
        growth_bytes=WORKER_GROWTH_BYTES if model.rank else MASTER_GROWTH_BYTES,
        tokenizer_bytes=tokenizer_bytes,
    )


def _link_bytes(model: RankModel, settings: RankSettings) -> int:
    if model.partition.n_ranks == 1:
        return 0
    payload = settings.max_tokens * model.spec.n_embd * _F32_BYTES
    count = master_frame_bytes if model.rank == 0 else worker_frame_bytes
    return payload + count(model.spec, settings.max_tokens, settings.n_cells)


def _logits_bytes(model: RankModel, settings: RankSettings) -> int:
    """In frames and, on the master, put together."""
    rows = [share.rows.size for share in model.partition.shares[-1]]
    n_values = model.spec.n_vocab + max(rows[1:], default=0) if model.rank == 0 else rows[model.rank]
    return settings.n_sampled * n_values * _F32_BYTES
