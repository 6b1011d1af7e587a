"""Chooses how an epoch's sums are added up: what the links are worth, what each way would cost, what to try.

Pure arithmetic; the measuring is ``measuring``'s. A sum costs hops·τ + payloads·S/B + messages·m: hops, payloads and
messages are the algorithm's own, τ is the one-way latency, S the encoded payload, m a message's processor time, and B
what a port carries while all devices send to all, which on a shared medium (Wi-Fi) is its part of that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpi.cluster.allreduce.algorithms import ALL_ALGORITHMS
from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.allreduce.payload import PayloadFormat, encoded_bytes
from tpi.cluster.control.messages import Measured, Plan, SumTrial
from tpi.cluster.mesh.frames import HEADER_BYTES, PayloadType
from tpi.cluster.reports import Choice, SumWay
from tpi.model.flow import Flow

TRIAL_BUDGET_S = 0.3
"""For all trials of one epoch, about."""
_MOST_ROUNDS, _LEAST_ROUNDS = 24, 2
_MOST_TRIALS = 3
_MESSAGE_S = 10e-6
"""Processor time of one message, there and here."""
TRIED = ("star", "one-shot", "two-shot")
"""Those that are ever best; the others must be asked for."""
_TYPES = {PayloadFormat.F32: PayloadType.F32, PayloadFormat.F16: PayloadType.F16, PayloadFormat.INT8: PayloadType.INT8}


@dataclass(frozen=True)
class Network:
    """What was measured: ``latency_s`` one way, the largest of all pairs; ``bytes_per_s`` that every device can send
    and receive at once, while all do."""

    latency_s: float
    bytes_per_s: float


def predict_s(algorithm: str, n_ranks: int, n_bytes: float, network: Network) -> float:
    """Seconds of one sum with payloads of ``n_bytes``."""
    cost = ALL_ALGORITHMS[algorithm].cost(n_ranks)
    port_bytes = cost.n_payloads * n_bytes + HEADER_BYTES * cost.n_messages / 2
    wire_s = port_bytes / network.bytes_per_s
    return cost.n_hops * network.latency_s + wire_s + cost.n_messages * _MESSAGE_S


def network_of(measured: Sequence[Measured], n_ranks: int) -> Network:
    """What all ranks have seen, put together."""
    latencies = [latency for one in measured for latency in one.latencies_s if latency > 0]
    latency_s = max(latencies, default=0.0)
    n_bytes = max(one.n_bytes for one in measured) * (n_ranks - 1)
    exchange_s = max(max(one.exchange_s for one in measured) - latency_s, 1e-6)
    return Network(latency_s, n_bytes / exchange_s)


def ways(
    plan: Plan, flow: Flow, network: Network, wanted: str | None, is_complete: bool, few_tokens: int
) -> dict[int, list[SumWay]]:
    """What to try for sums of one row and of as many as a part of a long pass has, best first. ``is_complete``: every
    two ranks are linked; otherwise only the star is possible, whatever is ``wanted`` of those that use links."""
    n_ranks, width = len(flow.participants), plan.spec.n_embd
    names: tuple[str, ...] = TRIED if wanted is None else (wanted,)
    if not is_complete and wanted != Mpi.name:
        names = ("star",)
    found = {}
    for n_tokens in (1, max(plan.max_tokens // plan.n_parts, 1)):
        candidates = []
        for name in names:
            for form in formats_of(plan.payload):
                n_values = n_tokens * width
                if len(names) > 1 and n_tokens > few_tokens and not _fits(name, n_ranks, n_values):
                    continue
                n_bytes = encoded_bytes(_TYPES[form], n_values)
                predicted_s = predict_s(name, n_ranks, n_bytes, network)
                candidates.append(SumWay(name, form.value, n_tokens, predicted_s))
        found[n_tokens] = sorted(candidates, key=lambda way: way.predicted_s)[:_MOST_TRIALS]
    return found


def formats_of(payload: str) -> list[PayloadFormat]:
    """What may be used where ``payload`` is the coarsest that is allowed: int8 saves bytes and costs arithmetic."""
    wanted = PayloadFormat(payload)
    return [PayloadFormat.INT8, PayloadFormat.F16] if wanted is PayloadFormat.INT8 else [wanted]


def trials_of(candidates: Mapping[int, Sequence[SumWay]]) -> list[SumTrial]:
    """The trials of all candidates, as often as the budget allows."""
    flat = [way for found in candidates.values() for way in found]
    each_s = TRIAL_BUDGET_S / len(flat)
    return [
        SumTrial(
            way.algorithm,
            way.payload,
            way.n_tokens,
            max(_LEAST_ROUNDS, min(_MOST_ROUNDS, int(each_s / max(way.predicted_s, 1e-6)))),
        )
        for way in flat
    ]


def choose(
    candidates: Mapping[int, Sequence[SumWay]], measured: Sequence[Measured], network: Network, few_tokens: int
) -> Choice:
    """The fastest of what was tried, by what was foretold and measured alike; a trial takes as long as on the slowest
    rank. Trials are few, on devices that still read weights, and formulas know nothing of slow processors: so one way
    must be better by both, or more by the one than it is worse by the other."""
    flat = [way for found in candidates.values() for way in found]
    times = [max(one.sums_s[number] for one in measured if one.sums_s) for number in range(len(flat))]
    tried = [
        SumWay(way.algorithm, way.payload, way.n_tokens, way.predicted_s, took_s)
        for way, took_s in zip(flat, times, strict=True)
    ]
    fastest = {n_tokens: _fastest([way for way in tried if way.n_tokens == n_tokens]) for n_tokens in candidates}
    few, many = fastest[min(fastest)], fastest[max(fastest)]
    return Choice(few, many, few_tokens, network.latency_s, network.bytes_per_s, tuple(tried))


def _fastest(tried: Sequence[SumWay]) -> SumWay:
    return min(tried, key=lambda way: way.measured_s * way.predicted_s)


def _fits(name: str, n_ranks: int, n_values: int) -> bool:
    """Whether an algorithm's buffers keep within what is planned for sums of many rows (``footprint``)."""
    return ALL_ALGORITHMS[name].n_buffered_values(n_ranks, n_values) <= 2 * n_values + 32 * n_ranks
