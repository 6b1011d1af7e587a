"""``tpi status``: the devices of a cluster whose master runs on this machine, as a table or as JSON."""

import sys
from typing import Annotated

import msgspec
import typer

from tpi.cli.environment import find_status_folder
from tpi.cli.figures import duration, part, size
from tpi.cli.statistics import as_text
from tpi.cli.statussocket import ask, choose_master
from tpi.cli.sums import describe as describe_sums
from tpi.cluster.reports import AnswerFigures, ClusterStatus, RankStatus

COLUMNS = (
    "rank",
    "device",
    "share",
    "shard",
    "memory",
    "peak",
    "planned",
    "limit",
    "window",
    "pinned",
    "read",
    "disk",
    "waited",
    "computed",
    "sums",
    "sent",
    "received",
    "passes",
)


def command(
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    pid: Annotated[int | None, typer.Option(help="The master's process, if several run.")] = None,
) -> None:
    """Show the devices of the cluster that runs here.

    For every rank: its share of the model and the bytes of its shard; the memory that its process has now, had at most,
    was planned to have at most, and may have; its window and how many of its pieces stay there; bytes read and how; the
    time that it waited for its disk, computed, and added sums up with the others; bytes sent and received; passes.
    """
    status = ask(choose_master(find_status_folder(), pid))
    if json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(status), indent=2).decode() + "\n")
        return
    print("\n".join(describe(status)))


def describe(status: ClusterStatus) -> list[str]:
    """The state as lines."""
    head = f"{status.model} ({status.model_digest[:12]}), context {status.context}, epoch {status.epoch}"
    names = {rank.rank: rank.name for rank in status.ranks}
    by_rank = [names.get(rank, f"rank {rank}") for rank in range(max(names) + 1)]
    lines = [head, *as_text(COLUMNS, [_row(rank) for rank in status.ranks])]
    lines += describe_sums(status.choice, status.detours, by_rank)
    n_rechosen = max(rank.n_rechosen for rank in status.ranks)
    if n_rechosen:
        lines.append(f"devices chose different experts {n_rechosen} times; the lowest rank's were taken")
    if status.answers is not None:
        lines.append(_answers(status.answers))
    if status.silent:
        lines.append(f"no answer from {', '.join(status.silent)}: what they told last, if anything, stands above")
    return [*lines, *status.notes]


def _answers(answers: AnswerFigures) -> str:
    return (
        f"{answers.n_running} answers under way, {answers.n_waiting} wait; so far prompts of "
        f"{answers.n_prompt_tokens:,} tokens, {answers.n_cached_tokens:,} of them not computed again, and answers of "
        f"{answers.n_tokens:,}"
        + (f"; {answers.n_pinned_cells:,} cells of the context are pinned" if answers.n_pinned_cells else "")
    )


def _row(rank: RankStatus) -> tuple[str, ...]:
    return (
        str(rank.rank),
        rank.name,
        part(rank.share),
        size(rank.shard_bytes),
        size(rank.rss_bytes),
        size(rank.peak_rss_bytes),
        size(rank.planned_bytes),
        size(rank.memory_limit_bytes) if rank.memory_limit_bytes is not None else "-",
        size(rank.window_bytes),
        f"{rank.n_pinned} of {rank.n_pieces}",
        size(rank.streamed_bytes),
        rank.disk_mode or "-",
        duration(rank.hold_s),
        duration(rank.compute_s),
        duration(rank.allreduce_s),
        size(rank.sent_bytes),
        size(rank.received_bytes),
        str(rank.n_passes),
    )
