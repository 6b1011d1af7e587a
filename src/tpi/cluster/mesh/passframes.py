"""A pass on the wire: the frame that says what it is. Embeddings follow in a frame of their own, f32.

All numbers are little-endian. The payload of a PASS frame:

====== ============ ==========================================================
offset bytes        field
====== ============ ==========================================================
0      4            n_tokens T
4      4            n_seen C: cells that the mask covers, from cell 0
8      4            n_sampled S
12     4            reserved, 0
16     4·T          positions, i32
       8·T          cells, i64
       4·S          sampled rows, i32, each < T, at most T of them
       T·⌈C/8⌉      mask, one bit per cell, lowest first, rows padded to bytes
====== ============ ==========================================================
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from tpi.cluster.mesh.frames import FrameBuffer
from tpi.errors import ProtocolError
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array

_START = struct.Struct("<IIII")


def pass_capacity(max_tokens: int, n_cells: int) -> int:
    """Bytes of the largest payload."""
    return _START.size + max_tokens * (16 + -(-n_cells // 8))


def pack_pass(work: Pass, buffer: FrameBuffer) -> int:
    """Writes the payload of ``work`` into the buffer; returns its length."""
    n, n_seen = work.visible.shape
    _START.pack_into(buffer.payload, 0, n, n_seen, len(work.sampled), 0)
    end = _START.size
    bits = np.packbits(work.visible, axis=1, bitorder="little")
    for array in (work.positions.astype("<i4"), work.cells.astype("<i8"), work.sampled.astype("<i4"), bits):
        buffer.payload[end : end + array.nbytes] = array.reshape(-1).view(np.uint8).data
        end += array.nbytes
    return end


def unpack_pass(pass_id: int, payload: memoryview, embeddings: Float32Array, n_cells: int, max_sampled: int) -> Pass:
    """Reads a payload; ``embeddings`` f32 [max_tokens, n_embd] is where they will be received.

    Raises:
        ProtocolError: lengths or values outside their bounds.
    """
    if len(payload) < _START.size:
        raise ProtocolError(f"a pass frame of {len(payload)} bytes is shorter than its start")
    n, n_seen, n_sampled, reserved = _START.unpack_from(payload)
    row = -(-n_seen // 8)
    expected = _START.size + n * (12 + row) + 4 * n_sampled
    fits = 1 <= n <= len(embeddings) and 1 <= n_seen <= n_cells and n_sampled <= min(n, max_sampled)
    if reserved or not fits or len(payload) != expected:
        raise ProtocolError(f"a pass of {n} tokens, {n_seen} cells and {n_sampled} samples does not fit the plan")
    offset = _START.size
    positions = np.frombuffer(payload, "<i4", n, offset)
    cells = np.frombuffer(payload, "<i8", n, offset + 4 * n)
    sampled = np.frombuffer(payload, "<i4", n_sampled, offset + 12 * n)
    bits = np.frombuffer(payload, np.uint8, n * row, offset + 12 * n + 4 * n_sampled).reshape(n, row)
    _check_range("writes to cell", cells, n_cells)
    _check_range("has a token at position", positions, 1 << 31)
    if n_sampled:
        _check_range("samples row", sampled, n)
    visible = np.unpackbits(bits, axis=1, count=n_seen, bitorder="little").view(np.bool_)
    return Pass(pass_id, embeddings[:n], positions, cells, visible, sampled)


def _check_range(what: str, values: npt.NDArray[np.signedinteger[Any]], limit: int) -> None:
    for value in (int(values.min()), int(values.max())):
        if not 0 <= value < limit:
            raise ProtocolError(f"a pass {what} {value}, allowed are 0 to {limit - 1}")
