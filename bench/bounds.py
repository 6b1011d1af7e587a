"""The least time that links and processors allow, and how a cluster compares with one of its devices. Pure numbers.

``bound_s`` of a sum: hops·τ + payloads·S/B, as the algorithm's file says, τ one way, B of every port, S the encoded
payload; no headers, encryption or processors. A token: one device's time ÷ N + all sums. A prompt: the longer of one
device's time ÷ N and its sums in two shots, since half of a chunk can compute while the other is added up.
"""

from typing import Any

from bench.shapes import Shape
from tpi.cluster.allreduce.algorithms import ALGORITHMS

_BYTES = {"f32": 4.0, "f16": 2.0, "int8": 34 / 32}
"""Of a value as it travels."""


def bound_s(algorithm: str, n_ranks: int, n_bytes: float, latency_s: float, rate_bps: float) -> float:
    """The least time of a sum of payloads of ``n_bytes``."""
    cost = ALGORITHMS[algorithm].cost(n_ranks)
    return cost.n_hops * latency_s + cost.n_payloads * n_bytes * 8 / rate_bps


def sums_bound_s(n_ranks: int, n_bytes: float, latency_s: float, rate_bps: float) -> float:
    """The same with the best algorithm of all."""
    return min(bound_s(name, n_ranks, n_bytes, latency_s, rate_bps) for name in ALGORITHMS)


def compare(one: dict[str, Any], many: dict[str, Any], shape: Shape, *, is_cut: bool) -> dict[str, float]:
    """Figures of ``bench cluster`` for ``many`` devices beside those for ``one``; bounds where every layer ``is_cut``
    among all."""
    n, first_s = many["devices"], many["time_to_first_token_s"]
    one_first_s = one["time_to_first_token_s"] * many["prompt_tokens"] / one["prompt_tokens"]
    found = {
        "decode_speedup": many["decode_tokens_per_s"] / one["decode_tokens_per_s"],
        "prefill_speedup": one_first_s / first_s,
    }
    if not is_cut:
        return found
    link = many["latency_ms"] / 1e3, many["mbps"] * 1e6
    row_bytes, n_sums = shape.n_embd * _BYTES[many["wire"]], 2 * shape.n_layers
    token_bound_s = 1 / (n * one["decode_tokens_per_s"]) + n_sums * bound_s(many["algorithm"], n, row_bytes, *link)
    prompt_sum_s = bound_s("two-shot", n, row_bytes * many["prompt_tokens"], *link)
    first_bound_s = max(one_first_s / n, n_sums * prompt_sum_s)
    return {
        **found,
        "decode_over_bound": 1 / (many["decode_tokens_per_s"] * token_bound_s),
        "token_bound_ms": token_bound_s * 1e3,
        "first_token_over_bound": first_s / first_bound_s,
        "first_token_bound_s": first_bound_s,
    }
