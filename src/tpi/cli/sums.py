"""How a cluster adds up, in words. Pure text."""

from collections.abc import Sequence

from tpi.cli.figures import duration
from tpi.cluster.reports import Choice, Detour, Ready, SumWay


def in_brief(choice: Choice | None) -> str:
    """For one line."""
    if choice is None:
        return ""
    few, many = choice.few, choice.many
    if not few.measured_s:
        return f"handed on from device to device in {choice.latency_s * 1e3:.2g} ms"
    text = f"sums by {few.algorithm} in {few.payload}, {duration(few.measured_s)} each"
    if (few.algorithm, few.payload) != (many.algorithm, many.payload):
        text += f"; for prompts by {many.algorithm} in {many.payload}"
    return text


def ready_text(event: Ready) -> str:
    """How many devices work, with how many cells, how they add up, and who reaches whom through the master only."""
    text = f"ready: {event.n_ranks} {'devices work' if event.n_ranks > 1 else 'device works'}"
    if event.context:
        text += f", context {event.context}"
    if event.choice is not None:
        text += f"; {in_brief(event.choice)}"
    if event.detours:
        text += f"; {len(event.detours)} pairs of devices reach each other through the master only (`tpi status`)"
    return text


def describe(choice: Choice | None, detours: Sequence[Detour], names: Sequence[str]) -> list[str]:
    """Lines about what was measured, foretold and chosen, and about links that take a detour; ``names`` by rank."""
    lines = []
    if choice is not None:
        lines.append(
            f"links: {duration(choice.latency_s)} one way, {choice.bytes_per_s * 8 / 1e6:,.0f} Mbit/s for each device "
            "while all send"
        )
        for title, chosen in ((f"sums of up to {choice.max_few_tokens} tokens", choice.few), ("longer", choice.many)):
            others = [way for way in choice.tried if way.n_tokens == chosen.n_tokens and way != chosen]
            slower = f"; tried as well: {', '.join(map(_way, others))}" if others else ""
            lines.append(f"{title}: {_way(chosen)}{slower}")
    for detour in detours:
        pair = " and ".join(names[rank] if rank < len(names) else f"rank {rank}" for rank in detour.ranks)
        lines.append(f"{pair} reach each other through the master only: {detour.reason}")
    return lines


def _way(way: SumWay) -> str:
    tokens = f"{way.n_tokens} token{'s' if way.n_tokens > 1 else ''}"
    if not way.measured_s:
        return f"{way.algorithm} in {way.payload}"
    return (
        f"{way.algorithm} in {way.payload} ({tokens} in {duration(way.measured_s)}, "
        f"foretold {duration(way.predicted_s)})"
    )
