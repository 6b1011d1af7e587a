"""States of clusters that never were."""

from dataclasses import dataclass

import msgspec

from tpi.cluster.reports import Choice, ClusterStatus, Detour, RankStatus, SumWay

FEW = SumWay("one-shot", "f16", 1, 0.0009, 0.001)
MANY = SumWay("two-shot", "f16", 64, 0.003, 0.004)
OTHER = SumWay("star", "f16", 1, 0.002, 0.0025)
CHOICE = Choice(FEW, MANY, 8, 0.0005, 12_500_000.0, (FEW, OTHER, MANY))


def rank_state(rank: int = 0, name: str = "here") -> RankStatus:
    return RankStatus(
        rank=rank,
        name=name,
        memory_limit_bytes=160_000_000,
        planned_bytes=310_000_000,
        peak_rss_bytes=92_400_000,
        rss_bytes=90_000_000,
        shard_bytes=2_000_000,
        window_bytes=1_000_000,
        pinned_bytes=500_000,
        n_pinned=2,
        n_pieces=9,
        disk_mode="direct",
        streamed_bytes=0,
        hold_s=0.5,
        compute_s=1.5,
        allreduce_s=0.25,
        sent_bytes=0,
        received_bytes=0,
        n_passes=3,
        n_sums=12,
        doing="idle",
        share=0.25,
    )


def cluster_state(n_ranks: int = 2, grown_by: int = 0) -> ClusterStatus:
    """``grown_by`` tokens after the start: 1000 bytes read and 100 sent for each, by every rank."""
    ranks = tuple(
        msgspec.structs.replace(
            rank_state(rank, f"device-{rank}"), streamed_bytes=1000 * grown_by, sent_bytes=100 * grown_by
        )
        for rank in range(n_ranks)
    )
    choice = CHOICE if n_ranks > 1 else None
    detours = (Detour((1, 2), "device-2 takes no calls"),) if n_ranks > 2 else ()
    return ClusterStatus("story", "ab" * 32, 1, 256, choice, detours, ranks)


@dataclass(frozen=True)
class FakeAnswer:
    """As the engine's ``Answer``."""

    text: str = "Hello."
    n_prompt_tokens: int = 7
    n_cached_tokens: int = 0
    n_tokens: int = 5
    time_to_first_token_s: float = 0.25
    decode_s: float = 2.0
    finish: str = "stop"
    seed: int = 42
