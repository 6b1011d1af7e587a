"""``tpi shards``: what this user's devices keep of models on this machine's disk, and making room there."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from tpi.cli.environment import find_folders
from tpi.cli.figures import size
from tpi.cli.statistics import as_text
from tpi.errors import KernelError, UsageError
from tpi.model.spec import ModelSpec
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.shards.inventory import Entry, list_entries, try_remove

COLUMNS = ("device", "model", "rank", "size", "order", "state", "written")


class ShardFacts(msgspec.Struct, frozen=True):
    """What ``--json`` tells of a shard. None: an unfinished or unreadable one does not say."""

    device: str
    file: str
    model: str | None
    model_digest: str | None
    rank: int | None
    n_ranks: int | None
    disk_bytes: int
    is_rearranged: bool | None
    is_for_these_kernels: bool | None
    """Whether the kernels that are installed now can read it."""
    state: Literal["finished", "unfinished", "unreadable"]
    is_used: bool
    written_s: float
    """When it was finished, or written to last; seconds since 1970."""


@dataclass(frozen=True)
class _Stored:
    entry: Entry
    facts: ShardFacts


def command(
    action: Annotated[
        Literal["prune"] | None, typer.Argument(metavar="[prune]", help="Remove what no start will use.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="With prune: remove everything.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With prune: tell what would be removed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List what is kept of models on this disk, or make room with `tpi shards prune`.

    A shard has a rank's slices. A rearranged copy has them in the order that the installed kernels compute fastest
    with; other kernels cannot read it. "written" is when the file was written: when it was read last is not known, as
    every start looks into all of them.

    prune removes unfinished shards that nobody writes, those that this version of tpi cannot read, and rearranged
    copies for other kernels; with --all everything. What is in use stays. What is missing later is made or fetched
    again.
    """
    folder = find_folders().shards
    stored = _find(folder)
    if action == "prune":
        if json:
            raise UsageError("--json is for the list: leave it out, or leave prune out")
        _prune(stored, everything, dry_run)
        return
    if everything or dry_run:
        raise UsageError("--all and --dry-run need prune: tpi shards prune")
    total = sum(one.facts.disk_bytes for one in stored)
    if json:
        facts = {"folder": str(folder), "total_bytes": total, "shards": [one.facts for one in stored]}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts), indent=2).decode() + "\n")
        return
    if stored:
        print("\n".join(as_text(COLUMNS, [_row(one.facts) for one in stored])))
    useless = sum(one.facts.disk_bytes for one in stored if _is_useless(one) and not one.facts.is_used)
    hint = f"; `tpi shards prune` would free {size(useless)}" if useless else ""
    print(f"total: {size(total)} in {folder}{hint}")


def _prune(stored: Sequence[_Stored], everything: bool, dry_run: bool) -> None:
    freed = 0
    for one in stored:
        if not everything and not _is_useless(one):
            continue
        is_removed = not one.facts.is_used if dry_run else try_remove(one.entry)
        if is_removed:
            freed += one.facts.disk_bytes
            print(f"{'would remove' if dry_run else 'removed'} {_title(one.facts)}")
        else:
            print(f"{'would keep' if dry_run else 'kept'} {_title(one.facts)}: it is in use")
    print(f"{'would free' if dry_run else 'freed'} {size(freed)}")


def _is_useless(one: _Stored) -> bool:
    return one.facts.state != "finished" or one.facts.is_for_these_kernels is False


def _find(folder: Path) -> list[_Stored]:
    """What all devices of this user keep here; each has a folder of its own."""
    devices = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    entries = [entry for device in devices for entry in list_entries(device)]
    repacking = _repacking() if any(entry.shard and entry.shard.header.repacking for entry in entries) else ""
    names = {entry.model_key: _name(entry.shard.header.spec) for entry in entries if entry.shard}
    return [_Stored(entry, _facts(entry, repacking, names.get(entry.model_key))) for entry in entries]


def _name(spec: ModelSpec) -> str:
    return f"{spec.name}, quantised to {spec.quant}" if spec.quant else spec.name


def _repacking() -> str:
    """What the installed kernels call their order of weights; empty if they have none."""
    try:
        with Repacker() as repacker:
            return repacker.name
    except KernelError:
        return ""


def _facts(entry: Entry, repacking: str, model: str | None) -> ShardFacts:
    header = entry.shard.header if entry.shard else None
    return ShardFacts(
        device=entry.path.parent.name,
        file=str(entry.files[0]),
        model=model,
        model_digest=header.spec.digest if header else None,
        rank=header.rank if header else None,
        n_ranks=header.partition.n_ranks if header else None,
        disk_bytes=entry.n_bytes,
        is_rearranged=header.repacking != "" if header else None,
        is_for_these_kernels=entry.suits(repacking) if header else None,
        state="finished" if header else "unreadable" if entry.is_finished else "unfinished",
        is_used=entry.is_used,
        written_s=entry.written_s,
    )


def _row(facts: ShardFacts) -> tuple[str, ...]:
    return (
        facts.device,
        facts.model or "-",
        "-" if facts.rank is None else f"{facts.rank} of {facts.n_ranks}",
        size(facts.disk_bytes),
        _order(facts),
        f"{facts.state}, in use" if facts.is_used else facts.state,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(facts.written_s)),
    )


def _order(facts: ShardFacts) -> str:
    if facts.is_rearranged is None:
        return "-"
    if not facts.is_rearranged:
        return "plain"
    return "rearranged" if facts.is_for_these_kernels else "rearranged for other kernels"


def _title(facts: ShardFacts) -> str:
    what = facts.state if facts.rank is None else f"rank {facts.rank} of {facts.n_ranks}, {_order(facts)}"
    return f"{facts.file} ({facts.model or 'unknown model'}, {what}, {size(facts.disk_bytes)})"
