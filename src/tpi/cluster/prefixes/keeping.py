"""A rank's part of saved prefixes, on its own disk: it follows the master's orders, and says what it could not do.

What is derived from a prompt stays on the rank that computed it. The thread that runs passes, between two of them.
"""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from tpi.cluster.control.messages import Plan, PrefixDone, one_line
from tpi.cluster.prefixes.orders import Action, PrefixOrder
from tpi.cluster.prefixes.prefixfile import PrefixFile, write_prefix_file
from tpi.errors import ChecksumError, DiskSpaceError, ModelFileError, UsageError
from tpi.model.partition import Partition
from tpi.runtime.passes import BLOCK_CELLS, Copies
from tpi.runtime.prefix import find_slots, place, views
from tpi.runtime.recurrent import StateMark
from tpi.runtime.workspace import Workspace

MAX_PARTS = 512
"""In one folder. A master has half as many saves in one of its own, and none of these is lost by that."""
_PART = re.compile(r"\.part-[0-9a-f]{32}\Z")


class HoldsPrefixes(Protocol):
    """What is needed of a rank's host (``epoch.host.RankHost``)."""

    def between_passes(self, copies: Copies, n_cells: int) -> Workspace: ...


class PartHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file's payload belongs to: what was saved, and the rank's part of everything that has to be the same when
    it is restored."""

    save_id: str
    n_tokens: int
    marks: tuple[StateMark, ...]
    model_digest: str
    rank: int
    partition: Partition
    kv_type: str
    ring_cells: tuple[int, ...]
    n_kept_states: int
    arithmetic: str
    """What else decides its bits, where these are the same every time; where they are not, ``fast``."""
    is_long: bool = False
    """Heads are turned as in long contexts, where that is something else."""


_WORDS = {
    "model_digest": "another model",
    "rank": "another rank",
    "partition": "other shares of the devices",
    "kv_type": "a KV cache of another type",
    "ring_cells": "passes of another length",
    "n_kept_states": "another number of kept states",
    "arithmetic": "other arithmetic",
    "is_long": "heads turned for long contexts",
}
_decoder: msgspec.msgpack.Decoder[PartHeader] = msgspec.msgpack.Decoder(PartHeader)


def follow(order: PrefixOrder, plan: Plan, host: HoldsPrefixes, folder: Path) -> PrefixDone:
    """Does what is ordered, or says in one line why not; then nothing has changed that can be seen.

    Raises:
        ProtocolError: the order speaks of what is not here.
    """
    work: dict[Action, Callable[[Path, PrefixOrder, Plan, Workspace], int]] = {
        Action.SAVE: _save,
        Action.CHECK: _check,
        Action.RESTORE: _restore,
        Action.PRUNE: _prune,
    }
    stop = max(order.cells, default=0) + BLOCK_CELLS
    workspace = host.between_passes(order.copies, stop if order.action is Action.RESTORE else 0)
    path = folder / f"{order.name}.part-{order.save_id}"
    try:
        return PrefixDone(order.number, work[order.action](path, order, plan, workspace))
    except (ModelFileError, ChecksumError, DiskSpaceError, UsageError) as error:
        return PrefixDone(order.number, 0, one_line(str(error)))


def _save(path: Path, order: PrefixOrder, plan: Plan, workspace: Workspace) -> int:
    prefix, slots = order.prefix, find_slots(workspace, order.prefix)
    n_bytes = sum(map(len, views(workspace, prefix, slots)))
    header = msgspec.msgpack.encode(_header(order, plan, workspace))
    n_bytes = write_prefix_file(path, header, n_bytes, views(workspace, prefix, slots))
    _drop_oldest(path)
    return n_bytes


def _check(path: Path, order: PrefixOrder, plan: Plan, workspace: Workspace) -> int:
    with PrefixFile(path) as file:
        _compare(file, order, plan, workspace)
        file.check()
        with suppress(OSError):
            os.utime(path)
        return file.n_bytes


def _restore(path: Path, order: PrefixOrder, plan: Plan, workspace: Workspace) -> int:
    with PrefixFile(path) as file:
        _compare(file, order, plan, workspace)
        slots = place(workspace, order.prefix)
        try:
            file.read(views(workspace, order.prefix, slots, order.n_present))
        except BaseException:  # a NaN would spread through masked attention
            for view in views(workspace, order.prefix, slots, order.n_present):
                view[:] = bytes(len(view))
            raise
        return file.n_bytes


def _prune(path: Path, order: PrefixOrder, plan: Plan, workspace: Workspace) -> int:
    with suppress(OSError):
        path.unlink()
    return 0


def _drop_oldest(latest: Path) -> None:
    """Of those that were used longest ago, nobody may know any more: the master's file can be removed by hand."""
    with suppress(OSError):
        others = (path for path in latest.parent.iterdir() if _PART.search(path.name) and path != latest)
        by_use = sorted(others, key=lambda path: path.stat().st_mtime, reverse=True)
        for path in by_use[MAX_PARTS - 1 :]:
            path.unlink()


def _compare(file: PrefixFile, order: PrefixOrder, plan: Plan, workspace: Workspace) -> None:
    """Raises:
    UsageError: the file is of something else.
    """
    try:
        found = _decoder.decode(file.header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelFileError(f"the saved prefix {order.name} is damaged: {error}") from None
    here = _header(order, plan, workspace)
    for field, words in _WORDS.items():
        if getattr(found, field) != getattr(here, field):
            told = "" if field in ("partition", "model_digest") else f": {getattr(found, field)}"
            raise UsageError(f"the prefix {order.name} was saved with {words}{told}; save it again")
    if found != here or file.n_payload_bytes != _n_bytes(order, workspace):
        raise UsageError(f"the prefix {order.name} is another one here than on the master: save it again")


def _n_bytes(order: PrefixOrder, workspace: Workspace) -> int:
    """Wherever it lies, it takes as much."""
    anywhere = msgspec.structs.replace(order, cells=_first_cells(order.n_tokens)).prefix
    return sum(map(len, views(workspace, anywhere, [0] * len(order.marks) if workspace.states else [])))


def _first_cells(n_tokens: int) -> Sequence[int]:
    return tuple(range(0, n_tokens, BLOCK_CELLS))


def _header(order: PrefixOrder, plan: Plan, workspace: Workspace) -> PartHeader:
    settings = workspace.settings
    windows = {window for window in workspace.model.windows if window}
    return PartHeader(
        save_id=order.save_id,
        n_tokens=order.n_tokens,
        marks=order.marks,
        model_digest=plan.spec.digest,
        rank=plan.rank,
        partition=plan.partition,
        kv_type=plan.kv_type,
        ring_cells=tuple(settings.ring_cells(window) for window in sorted(windows)),
        n_kept_states=plan.n_kept_states,
        arithmetic=_arithmetic(plan, workspace),
        is_long=plan.n_cells > workspace.model.inputs.short_context > 0,
    )


def _arithmetic(plan: Plan, workspace: Workspace) -> str:
    """Sums come to the same whatever their algorithm, in one payload."""
    if not plan.is_reproducible:
        return "fast"
    return f"reproducible, {plan.payload}{workspace.repacking and ', ' + workspace.repacking}"
