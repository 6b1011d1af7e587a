"""Saves a slot's text with all that ranks keep of it, and restores it, also in another session.

The master's own file, NAME, has the tokens; what was computed of them lies with every rank, in NAME.part-ID there
(``cluster/prefixes``). NAME is written last, and says which ID counts: so a save is whole, or the one before is. Then
the parts of the other are removed. Blocks its caller; the work is done between two steps.
"""

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import numpy as np

from tpi.cluster.control.messages import PrefixDone
from tpi.cluster.prefixes.keeping import MAX_PARTS
from tpi.cluster.prefixes.orders import MAX_STATES, Action, FileName, Number, PrefixOrder, SaveId
from tpi.cluster.prefixes.prefixfile import PrefixFile, check_replaceable, remove_unfinished, write_prefix_file
from tpi.engine.prefixes import KeptPrefix
from tpi.engine.scheduler import Scheduler
from tpi.engine.sequences import Sequences
from tpi.errors import ChecksumError, DiskSpaceError, ModelFileError, UsageError
from tpi.runtime.recurrent import StateMark
from tpi.runtime.retention import KeptBeside

_MAX_TOKENS = 1 << 24
_MAX_SAVES = MAX_PARTS // 2


class KeepsPrefixes(Protocol):
    """What is needed of a cluster (``cluster.cluster.Cluster``)."""

    def keep(self, order: PrefixOrder) -> tuple[PrefixDone, ...]: ...


class TextHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of a file whose payload are the tokens, u32."""

    save_id: SaveId
    model_digest: str
    n_written: Number
    marks: Annotated[tuple[StateMark, ...], msgspec.Meta(max_length=MAX_STATES)]


@dataclass(frozen=True)
class SlotFigures:
    """Of what was saved or restored: tokens, bytes of all files, and how long it took."""

    n_tokens: int
    n_bytes: int
    took_s: float


class Slots:
    """Those of a cluster, which has ``n_slots`` and computes with the model of ``model_digest``; files of the master
    are in ``folder``."""

    def __init__(
        self, scheduler: Scheduler, cluster: KeepsPrefixes, folder: Path | None, model_digest: str, n_slots: int
    ) -> None:
        self._scheduler, self._cluster, self._folder = scheduler, cluster, folder
        self._model_digest, self.n_slots = model_digest, n_slots
        if folder is not None:
            remove_unfinished(folder)

    @property
    def are_saved(self) -> bool:
        """There is a folder for them."""
        return self._folder is not None

    def save(self, slot: int, name: str) -> SlotFigures:
        """Raises:
        UsageError: there is no such slot, nothing to save, the name is none, or another file's, or there are as many
            saves as may be.
        BusyError: it is being answered.
        DiskSpaceError: a rank cannot write it; what was saved by this name before stays.
        LinkError: a worker is gone.
        """
        path = self._path(slot, name)
        return self._scheduler.between(lambda sequences: self._save(sequences, slot, path)).result()

    def restore(self, slot: int, name: str) -> SlotFigures:
        """Raises:
        UsageError: there is no such slot, or a rank's file is missing, damaged, or of something else.
        ContextError: it has more tokens than can ever have room.
        BusyError: it is being answered, or there is no room.
        LinkError: a worker is gone.
        """
        path = self._path(slot, name)
        return self._scheduler.between(lambda sequences: self._restore(sequences, slot, path)).result()

    def erase(self, slot: int) -> int:
        """Forgets the slot's text; how many tokens that were. Raises as ``save``."""
        self._check(slot)
        return self._scheduler.between(lambda sequences: sequences.prefixes.erase(slot)).result()

    def _path(self, slot: int, name: str) -> Path:
        assert self._folder is not None, "there is a folder"
        self._check(slot)
        try:
            return self._folder / msgspec.convert(name, FileName)
        except msgspec.ValidationError:
            raise UsageError(
                f"{name[:100]!r} is no name for a saved slot: write up to 100 letters, digits, dots, dashes, a letter "
                "first"
            ) from None

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.n_slots:
            raise UsageError(f"there is no slot {str(slot)[:20]}: there are 0 to {self.n_slots - 1}")

    # Between two steps.

    def _save(self, sequences: Sequences, slot: int, path: Path) -> SlotFigures:
        started_s = time.monotonic()
        kept = sequences.prefixes.kept(slot)
        if not kept.tokens:
            raise UsageError(f"nothing is kept of slot {slot}: ask something there first")
        before, order = _replaced(path), self._order(Action.SAVE, path, secrets.token_hex(16), slot, kept)
        try:
            done = self._ask(order, sequences)
            if refusal := _refusal_of(done):
                raise DiskSpaceError(refusal)
            n_bytes = self._write(path, order.save_id, kept) + sum(entry.n_bytes for entry in done)
        except (DiskSpaceError, UsageError):
            self._ask(PrefixOrder(Action.PRUNE, path.name, order.save_id), sequences)
            raise
        if before:
            self._ask(PrefixOrder(Action.PRUNE, path.name, before), sequences)
        return SlotFigures(len(kept.tokens), n_bytes, time.monotonic() - started_s)

    def _write(self, path: Path, save_id: str, kept: KeptPrefix) -> int:
        header = TextHeader(save_id, self._model_digest, kept.beside.n_written, tuple(kept.beside.marks))
        tokens = np.array(kept.tokens, "<u4").tobytes()
        try:
            return write_prefix_file(path, msgspec.msgpack.encode(header), len(tokens), [tokens])
        except DiskSpaceError as error:
            raise DiskSpaceError(f"rank 0: {error}") from None

    def _restore(self, sequences: Sequences, slot: int, path: Path) -> SlotFigures:
        started_s = time.monotonic()
        try:
            save_id, kept, n_bytes = self._read(path)
        except (ModelFileError, ChecksumError) as error:
            raise UsageError(str(error)) from None
        sequences.check_room(kept)
        checked = self._ask(self._order(Action.CHECK, path, save_id, slot, kept), sequences)
        if refusal := _refusal_of(checked):
            raise UsageError(refusal)
        with sequences.prefixes.placing(slot, kept, sequences.n_missing) as place:
            placed = KeptPrefix(kept.tokens, place.cells, kept.beside)
            order = self._order(Action.RESTORE, path, save_id, slot, placed)
            done = self._ask(msgspec.structs.replace(order, n_present=place.n_present), sequences)
            if refusal := _refusal_of(done):
                raise UsageError(refusal)
        n_bytes += sum(entry.n_bytes for entry in done)
        return SlotFigures(len(kept.tokens), n_bytes, time.monotonic() - started_s)

    def _read(self, path: Path) -> tuple[str, KeptPrefix, int]:
        """The save's number, the tokens and what is to be kept beside cells, and the file's length.

        Raises:
            ModelFileError, ChecksumError, UsageError: it is missing, damaged, or of something else.
        """
        with PrefixFile(path) as file:
            header = _header_of(file, path)
            if header.model_digest != self._model_digest:
                raise UsageError(f"{path.name} was saved with another model: save it again")
            if not 0 < file.n_payload_bytes <= 4 * _MAX_TOKENS or file.n_payload_bytes % 4:
                raise UsageError(
                    f"{path.name} is no saved text: it has {file.n_payload_bytes} bytes of tokens; name another"
                )
            content = bytearray(file.n_payload_bytes)
            file.read([memoryview(content)])
            tokens = np.frombuffer(content, "<u4").tolist()
            kept = KeptPrefix(tuple(tokens), (), KeptBeside(header.n_written, header.marks))
            return header.save_id, kept, file.n_bytes

    def _order(self, action: Action, path: Path, save_id: str, slot: int, kept: KeptPrefix) -> PrefixOrder:
        return PrefixOrder(action, path.name, save_id, slot, len(kept.tokens), kept.cells, kept.beside.marks)

    def _ask(self, order: PrefixOrder, sequences: Sequences) -> tuple[PrefixDone, ...]:
        order = msgspec.structs.replace(order, copies=sequences.copies)
        done = self._cluster.keep(order)
        sequences.copied()
        return done


def _header_of(file: PrefixFile, path: Path) -> TextHeader:
    """Raises:
    UsageError: it has none.
    """
    try:
        return msgspec.msgpack.decode(file.header, type=TextHeader)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise UsageError(f"{path.name} is no saved text: {error}; name another") from None


def _replaced(path: Path) -> str:
    """The ID of the save that has this name now; empty if there is none, or it cannot be told.

    Raises:
        UsageError: another file has it, or there are too many saves.
    """
    check_replaceable(path)
    try:
        names = os.listdir(path.parent)
    except OSError:  # writing will tell
        return ""
    if path.name not in names:
        if sum(name[0] != "." and ".part-" not in name for name in names) >= _MAX_SAVES:
            raise UsageError(
                f"{_MAX_SAVES} texts are saved, as many as may be: take one of their names, or remove some"
            )
        return ""
    try:
        with PrefixFile(path) as file:
            return _header_of(file, path).save_id
    except (ModelFileError, UsageError):
        return ""


def _refusal_of(done: Sequence[PrefixDone]) -> str:
    """Of the lowest rank that has done nothing; empty if there is none."""
    found = ((rank, entry.refusal) for rank, entry in enumerate(done) if entry.refusal)
    return next((f"rank {rank}: {refusal}" for rank, refusal in found), "")
