"""A pass on the wire: what it is, and for some ranks the rows of the residual stream that it begins with, in one frame.

All numbers are little-endian. The payload of a PASS frame:

====== ============ ==========================================================
offset bytes        field
====== ============ ==========================================================
0      4            n_tokens T; 0: no pass, but all logits of the last one are wanted, and nothing follows, or with
                    n_seen 1 an order for a prefix, which begins at byte 32 (``prefixes.orders``)
4      4            n_seen C: cells that the mask covers, from cell 0
8      4            n_sampled S
12     4            n_best: of each sampled row, 0 for all
16     4            n_ids I: tokens whose logits are wanted in any case
20     4            tokens from this one on are none; 0: all are tokens
24     1            1: the mask says for every token how many cells it sees, from cell 0; 0: it has a bit for each
25     1            1: embeddings follow
26     1            1: all of a row may come in 16 bits; plus 2: the residual stream is wanted as well
27     1            n_runs R: sequences of the rows; 0: all rows are the next tokens of sequence 0
28     2            n_cell_copies K
30     2            n_sequence_copies Q
32     8·R          of each run the number of its sequence, u32, then its rows times 2, plus 1 if
                    the recurrent state after them is to be kept, u32
       12·K         cells that are copied first: source, target and how many, u32
       12·Q         what is kept of sequences, copied: source, target and after how many tokens, u32
       4·T          positions, i32
       8·T          cells, i64
       4·S          sampled rows, i32, each < T, at most T of them
       4·I          ids, i32
       4·T          mask, counts, u32, 1 to C; or
       T·⌈C/8⌉      mask, one bit per cell, lowest first, rows padded to bytes; then zeros up to a multiple of 4
       4·T·E        embeddings and what is looked up beside them, f32 [T, E], if they follow
====== ============ ==========================================================
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpi.cluster.mesh.frames import FrameBuffer
from tpi.config import MAX_PARALLEL
from tpi.errors import ProtocolError
from tpi.runtime.logits import MAX_IDS, Wanted
from tpi.runtime.passes import MAX_COPIES, CellCopy, Copies, Pass, Run, SequenceCopy

_START = struct.Struct("<IIIIIIBBBBHH")


@dataclass(frozen=True)
class PassLimits:
    """What passes of a plan can have at most, and their width."""

    max_tokens: int
    n_cells: int
    max_sampled: int
    n_vocab: int
    n_embd: int
    """Values that enter for every token."""
    n_sequences: int = 1


def pass_capacity(max_tokens: int, n_cells: int, n_embd: int) -> int:
    """Bytes of the largest payload; with ``n_embd`` 0, of one without embeddings."""
    mask = max(4, -(-n_cells // 8))
    runs = 8 * min(max_tokens, MAX_PARALLEL)
    copies = 2 * 12 * MAX_COPIES
    return _START.size + runs + copies + 4 * MAX_IDS + max_tokens * (16 + mask + 4 * n_embd) + 4


def pack_pass(work: Pass, buffer: FrameBuffer, with_embeddings: bool) -> int:
    """Writes the payload of ``work`` into the buffer; returns its length."""
    n, n_seen = work.visible.shape
    counts = work.visible.sum(axis=1, dtype=np.uint32)
    is_counted = bool((work.visible == (np.arange(n_seen)[None, :] < counts[:, None])).all()) and bool(counts.all())
    wanted = work.wanted
    _START.pack_into(
        buffer.payload, 0, n, n_seen, len(work.sampled), wanted.n_best, len(wanted.ids), wanted.n_tokens,
        is_counted, with_embeddings, (not wanted.is_exact) + 2 * wanted.is_streamed, len(work.runs),
        len(work.copies.cells), len(work.copies.sequences),
    )  # fmt: skip
    mask = counts.astype("<u4") if is_counted else np.packbits(work.visible, axis=1, bitorder="little")
    ids = np.asarray(wanted.ids, "<i4")
    runs = np.array([(run.sequence, 2 * run.n_tokens + run.is_kept) for run in work.runs], "<u4")
    cells = np.array([(copy.source, copy.target, copy.n_cells) for copy in work.copies.cells], "<u4")
    kept = np.array([(copy.source, copy.target, copy.n_tokens) for copy in work.copies.sequences], "<u4")
    arrays = [
        runs,
        cells,
        kept,
        work.positions.astype("<i4"),
        work.cells.astype("<i8"),
        work.sampled.astype("<i4"),
        ids,
        mask,
    ]
    if with_embeddings:
        assert work.embeddings is not None
        padding = np.zeros(-mask.nbytes % 4, np.uint8)
        arrays += [padding, work.embeddings.astype("<f4", copy=False)]
    end = _START.size
    for array in arrays:
        buffer.payload[end : end + array.nbytes] = array.reshape(-1).view(np.uint8).data
        end += array.nbytes
    return end


def pack_rest(buffer: FrameBuffer) -> int:
    """Writes the payload that asks for all logits of the last pass; returns its length."""
    _START.pack_into(buffer.payload, 0, *[0] * 12)
    return _START.size


def pack_order(content: bytes, buffer: FrameBuffer) -> int:
    """Writes the payload of an order for a prefix; returns its length.

    Raises:
        ProtocolError: there is no room for it.
    """
    n_bytes = _START.size + len(content)
    if n_bytes > buffer.capacity_bytes:
        raise ProtocolError(f"an order of {len(content)} bytes is longer than the passes of this plan")
    _START.pack_into(buffer.payload, 0, 0, 1, *[0] * 10)
    buffer.payload[_START.size : n_bytes] = content
    return n_bytes


def unpack_order(payload: memoryview) -> bytes | None:
    """The content of an order for a prefix, if the payload is one."""
    is_order = len(payload) > _START.size and _START.unpack_from(payload) == (0, 1, *[0] * 10)
    return bytes(payload[_START.size :]) if is_order else None


def unpack_pass(pass_id: int, payload: memoryview, limits: PassLimits) -> Pass | None:
    """Reads a payload; None if it asks for all logits of the last pass. Arrays may refer to the payload's memory.

    Raises:
        ProtocolError: lengths or values outside their bounds.
    """
    if len(payload) < _START.size:
        raise ProtocolError(f"a pass frame of {len(payload)} bytes is shorter than its start")
    n, n_seen, n_sampled, n_best, n_ids, n_tokens, *flags = _START.unpack_from(payload)
    is_counted, has_embeddings, form, n_runs, n_cell_copies, n_sequence_copies = flags
    n_copies = n_cell_copies + n_sequence_copies
    if n == 0 and not any(payload[: _START.size]) and len(payload) == _START.size:
        return None
    row = -(-n_seen // 8)
    mask_bytes = n * (4 if is_counted else row)
    positions_at = _START.size + 8 * n_runs + 12 * n_copies
    mask_at = positions_at + 12 * n + 4 * n_sampled + 4 * n_ids
    embeddings_at = mask_at + mask_bytes + (-mask_bytes % 4 if has_embeddings else 0)
    expected = embeddings_at + (4 * n * limits.n_embd if has_embeddings else 0)
    fits = 1 <= n <= limits.max_tokens and 1 <= n_seen <= limits.n_cells and n_sampled <= min(n, limits.max_sampled)
    flags_fit = max(is_counted, has_embeddings) <= 1 and form <= 3 and n_runs <= min(n, MAX_PARALLEL)
    flags_fit = flags_fit and max(n_cell_copies, n_sequence_copies) <= MAX_COPIES
    fits = fits and n_ids <= MAX_IDS and max(n_best, n_tokens) <= limits.n_vocab
    if not (fits and flags_fit) or len(payload) != expected:
        raise ProtocolError(f"a pass of {n} tokens, {n_seen} cells and {n_sampled} samples does not fit the plan")
    runs = _unpack_runs(np.frombuffer(payload, "<u4", 2 * n_runs, _START.size), n, limits)
    copies = _unpack_copies(
        np.frombuffer(payload, "<u4", 3 * n_copies, positions_at - 12 * n_copies), n_cell_copies, limits
    )
    offset = positions_at
    positions = np.frombuffer(payload, "<i4", n, offset)
    cells = np.frombuffer(payload, "<i8", n, offset + 4 * n)
    sampled = np.frombuffer(payload, "<i4", n_sampled, offset + 12 * n)
    ids = np.frombuffer(payload, "<i4", n_ids, offset + 12 * n + 4 * n_sampled)
    _check_range("writes to cell", cells, limits.n_cells)
    _check_range("has a token at position", positions, 1 << 31)
    if n_sampled:
        _check_range("samples row", sampled, n)
    if n_ids:
        _check_range("wants the logit of token", ids, limits.n_vocab)
    if is_counted:
        counts = np.frombuffer(payload, "<u4", n, mask_at)
        _check_range("shows cells before", counts.astype(np.int64), n_seen + 1)
        visible = np.arange(n_seen)[None, :] < counts[:, None]
    else:
        bits = np.frombuffer(payload, np.uint8, n * row, mask_at).reshape(n, row)
        visible = np.unpackbits(bits, axis=1, count=n_seen, bitorder="little").view(np.bool_)
    embeddings = None
    if has_embeddings:
        embeddings = np.frombuffer(payload, "<f4", n * limits.n_embd, embeddings_at).reshape(n, limits.n_embd)
    wanted = Wanted(n_best, tuple(ids.tolist()), not form & 1, n_tokens, bool(form & 2))
    return Pass(pass_id, embeddings, positions, cells, visible, sampled, wanted, runs, copies)


def _unpack_runs(values: npt.NDArray[np.uint32], n_tokens: int, limits: PassLimits) -> tuple[Run, ...]:
    pairs = zip(values[::2].tolist(), values[1::2].tolist(), strict=True)
    runs = tuple(Run(sequence, length >> 1, bool(length & 1)) for sequence, length in pairs)
    numbers = {run.sequence for run in runs}
    is_sound = (
        all(run.n_tokens for run in runs) and len(numbers) == len(runs) and max(numbers, default=0) < limits.n_sequences
    )
    if runs and not (is_sound and sum(run.n_tokens for run in runs) == n_tokens):
        raise ProtocolError(f"a pass of {n_tokens} tokens has {len(runs)} sequences that do not fit it")
    return runs


def _unpack_copies(values: npt.NDArray[np.uint32], n_cell_copies: int, limits: PassLimits) -> Copies:
    rows = values.reshape(-1, 3).tolist()
    cells = tuple(CellCopy(*row) for row in rows[:n_cell_copies])
    sequences = tuple(SequenceCopy(*row) for row in rows[n_cell_copies:])
    for cell in cells:
        if cell.n_cells < 1 or max(cell.source, cell.target) + cell.n_cells > limits.n_cells:
            raise ProtocolError(f"a pass copies {cell.n_cells} cells from {cell.source} to {cell.target}")
    for copy in sequences:
        if max(copy.source, copy.target) >= limits.n_sequences or copy.source == copy.target:
            raise ProtocolError(f"a pass copies what is kept of sequence {copy.source} to {copy.target}")
    return Copies(cells, sequences)


def _check_range(what: str, values: npt.NDArray[np.signedinteger[Any]], limit: int) -> None:
    for value in (int(values.min()), int(values.max())):
        if not 0 <= value < limit:
            raise ProtocolError(f"a pass {what} {value}, allowed are 0 to {limit - 1}")
