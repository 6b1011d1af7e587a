"""Passes on the wire: golden bytes, the way there and back, and payloads that no master sends."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.mesh.frames import FrameBuffer
from tpi.cluster.mesh.passframes import pack_pass, pass_capacity, unpack_pass
from tpi.errors import ProtocolError
from tpi.runtime.passes import Pass

MAX_TOKENS, N_CELLS, WIDTH, MAX_SAMPLED = 6, 40, 3, 6
EMBEDDINGS = np.zeros((MAX_TOKENS, WIDTH), np.float32)
GOLDEN = bytes.fromhex(
    "02000000 0a000000 01000000 00000000"  # tokens, seen, sampled, reserved
    "08000000 09000000"  # positions
    "0800000000000000 0900000000000000"  # cells
    "01000000"  # sampled
    "ff01 ff03"  # mask
)


def make(n: int, n_seen: int, sampled: list[int], positions: list[int], cells: list[int], mask: int = 0) -> Pass:
    bits = np.array([(mask >> i) & 1 for i in range(n * n_seen)], bool).reshape(n, n_seen)
    return Pass(
        pass_id=5,
        embeddings=EMBEDDINGS[:n],
        positions=np.array(positions, np.int32),
        cells=np.array(cells, np.int64),
        visible=bits,
        sampled=np.array(sampled, np.int32),
    )


def packed(work: Pass) -> bytes:
    buffer = FrameBuffer(pass_capacity(MAX_TOKENS, N_CELLS))
    return bytes(buffer.payload[: pack_pass(work, buffer)])


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    n, n_seen = draw(st.integers(1, MAX_TOKENS)), draw(st.integers(1, N_CELLS))
    numbers = st.integers(0, N_CELLS - 1)
    return make(
        n,
        n_seen,
        draw(st.lists(st.integers(0, n - 1), max_size=n)),
        draw(st.lists(st.integers(0, (1 << 31) - 1), min_size=n, max_size=n)),
        draw(st.lists(numbers, min_size=n, max_size=n)),
        draw(st.integers(0, (1 << (n * n_seen)) - 1)),
    )


def test_golden_bytes() -> None:
    work = make(2, 10, [1], [8, 9], [8, 9])
    work.visible[:] = np.arange(10)[None, :] <= np.array([8, 9])[:, None]
    assert packed(work) == GOLDEN


@given(passes())
def test_there_and_back(work: Pass) -> None:
    read = unpack_pass(5, memoryview(packed(work)), EMBEDDINGS, N_CELLS, MAX_SAMPLED)
    for name in ("positions", "cells", "visible", "sampled"):
        assert np.array_equal(getattr(read, name), getattr(work, name)), name
    assert read.visible.dtype == np.bool_ and read.visible.shape == work.visible.shape
    assert read.embeddings.shape == work.embeddings.shape and read.pass_id == 5


def test_the_largest_pass_fits() -> None:
    full = list(range(MAX_TOKENS))
    assert len(packed(make(MAX_TOKENS, N_CELLS, full, full, full))) == pass_capacity(MAX_TOKENS, N_CELLS)


def _changed(offset: int, form: str, *values: int) -> bytes:
    payload = bytearray(GOLDEN)
    struct.pack_into(form, payload, offset, *values)
    return bytes(payload)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "shorter than its start"),
        (GOLDEN[:15], "shorter than its start"),
        (GOLDEN[:-1], "does not fit the plan"),
        (GOLDEN + b"\0", "does not fit the plan"),
        (_changed(0, "<I", 0), "does not fit the plan"),
        (_changed(0, "<I", 7), "a pass of 7 tokens"),
        (_changed(0, "<I", 0xFFFFFFFF), "does not fit the plan"),
        (_changed(4, "<I", 0), "does not fit the plan"),
        (_changed(4, "<I", N_CELLS + 1), "41 cells"),
        (_changed(4, "<I", 0xFFFFFFFF), "does not fit the plan"),
        (_changed(8, "<I", 0xFFFFFFFF), "does not fit the plan"),
        (_changed(12, "<I", 1), "does not fit the plan"),
        (_changed(16, "<i", -1), "has a token at position -1,"),
        (_changed(24, "<q", N_CELLS), "writes to cell 40, allowed are 0 to 39"),
        (_changed(24, "<q", -1), "writes to cell -1,"),
        (_changed(24, "<q", -(1 << 63)), "writes to cell -9223372036854775808,"),
        (_changed(40, "<i", 2), "samples row 2, allowed are 0 to 1"),
        (_changed(40, "<i", -1), "samples row -1,"),
    ],
)
def test_payloads_that_fit_no_pass(payload: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        unpack_pass(1, memoryview(payload), EMBEDDINGS, N_CELLS, MAX_SAMPLED)


def test_more_sampled_rows_than_tokens() -> None:
    """They would overrun the memory that was planned for sampled rows."""
    payload = struct.pack("<IIII", 1, 1, 20, 0) + bytes(4 + 8 + 20 * 4 + 1)
    assert len(payload) <= pass_capacity(MAX_TOKENS, N_CELLS)
    with pytest.raises(ProtocolError, match="20 samples does not fit"):
        unpack_pass(1, memoryview(payload), EMBEDDINGS, N_CELLS, MAX_SAMPLED)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pass_or_refused(payload: bytes) -> None:
    try:
        work = unpack_pass(1, memoryview(payload), EMBEDDINGS, N_CELLS, MAX_SAMPLED)
    except ProtocolError:
        return
    assert work.cells.max() < N_CELLS and len(work.sampled) <= work.n_tokens <= MAX_TOKENS
