"""Passes on the wire: golden bytes, the way there and back, and payloads that no master sends."""

import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.mesh.frames import MAX_PAYLOAD_BYTES, FrameBuffer
from tpi.cluster.mesh.passframes import (
    PassLimits,
    pack_pass,
    pack_rest,
    pass_capacity,
    unpack_pass,
)
from tpi.errors import ProtocolError
from tpi.runtime.logits import ALL, MAX_IDS, Wanted
from tpi.runtime.passes import MAX_COPIES, CellCopy, Copies, Pass, Run, SequenceCopy

LIMITS = PassLimits(max_tokens=6, n_cells=40, max_sampled=6, n_vocab=100, n_embd=3, n_sequences=2)
CAPACITY = pass_capacity(LIMITS.max_tokens, LIMITS.n_cells, LIMITS.n_embd)
START_BYTES = 32

COUNTED = bytes.fromhex(
    "02000000 0a000000 01000000"  # tokens, seen, sampled
    "00000000 00000000 00000000"  # all of each row; no ids; all are tokens
    "01 00 00 00"  # counted, no embeddings, exact, no sequences
    "0000 0000"  # nothing is copied
    "08000000 09000000"  # positions
    "0800000000000000 0900000000000000"  # cells
    "01000000"  # sampled
    "09000000 0a000000"  # how many cells each token sees
)
DRAWN = bytes.fromhex(
    "02000000 0a000000 01000000"
    "05000000 02000000 50000000"  # five best, two ids, 80 tokens
    "00 00 01 00"  # a bit for each cell, no embeddings, 16 bits will do
    "0000 0000"
    "08000000 09000000"
    "0800000000000000 0900000000000000"
    "01000000"
    "07000000 4f000000"  # ids
    "fd01 ff03"  # mask
)
EMBEDDED = "0000803f 00000040 00004040 000080bf 000000c0 000040c0"


def make(
    n: int, n_seen: int, sampled: list[int], positions: list[int], cells: list[int], mask: int = 0, wanted: Wanted = ALL
) -> Pass:
    bits = np.array([(mask >> i) & 1 for i in range(n * n_seen)], bool).reshape(n, n_seen)
    return Pass(
        pass_id=5,
        embeddings=np.arange(n * LIMITS.n_embd, dtype=np.float32).reshape(n, LIMITS.n_embd) - 4,
        positions=np.array(positions, np.int32),
        cells=np.array(cells, np.int64),
        visible=bits,
        sampled=np.array(sampled, np.int32),
        wanted=wanted,
    )


def two_tokens(is_counted: bool, wanted: Wanted = ALL) -> Pass:
    """In cells 8 and 9; if not counted, the first does not see cell 1."""
    work = make(2, 10, [1], [8, 9], [8, 9], wanted=wanted)
    work.visible[:] = np.arange(10)[None, :] <= np.array([8, 9])[:, None]
    work.visible[0, 1] = is_counted
    assert work.embeddings is not None
    work.embeddings[:] = [[1, 2, 3], [-1, -2, -3]]
    return work


def packed(work: Pass, with_embeddings: bool = False) -> bytes:
    buffer = FrameBuffer(CAPACITY)
    buffer.payload[:] = b"\xff" * CAPACITY
    return bytes(buffer.payload[: pack_pass(work, buffer, with_embeddings)])


def read(payload: bytes, limits: PassLimits = LIMITS) -> Pass:
    work = unpack_pass(5, memoryview(payload), limits)
    assert work is not None
    return work


WANTED = Wanted(5, (7, 79), False, 80)


def test_golden_bytes_of_a_mask_that_is_counted() -> None:
    assert packed(two_tokens(True)) == COUNTED
    assert packed(two_tokens(True), True) == COUNTED[:25] + b"\1" + COUNTED[26:] + bytes.fromhex(EMBEDDED)


def test_golden_bytes_of_a_mask_that_is_drawn() -> None:
    assert packed(two_tokens(False, WANTED)) == DRAWN
    assert packed(two_tokens(False, WANTED), True) == DRAWN[:25] + b"\1" + DRAWN[26:] + bytes.fromhex(EMBEDDED)


def test_a_drawn_mask_is_filled_up_before_embeddings() -> None:
    """One token and nine cells: two bytes of mask, two of zeros; nothing is filled up where nothing follows."""
    work = make(1, 9, [], [8], [8], 0b101010101)
    assert packed(work)[START_BYTES + 12 :] == b"\x55\x01"
    assert packed(work, True)[START_BYTES + 12 : START_BYTES + 16] == b"\x55\x01\0\0"
    embeddings = read(packed(work, True)).embeddings
    assert embeddings is not None and embeddings.tolist() == [[-4.0, -3.0, -2.0]]


def test_golden_bytes_of_a_request_for_the_rest() -> None:
    buffer = FrameBuffer(CAPACITY)
    buffer.payload[:] = b"\xff" * CAPACITY
    assert bytes(buffer.payload[: pack_rest(buffer)]) == bytes(START_BYTES)
    assert unpack_pass(5, memoryview(bytes(START_BYTES)), LIMITS) is None


@st.composite
def passes(draw: st.DrawFn) -> Pass:
    n, n_seen = draw(st.integers(1, LIMITS.max_tokens)), draw(st.integers(1, LIMITS.n_cells))
    numbers = st.integers(0, LIMITS.n_cells - 1)
    wanted = Wanted(
        draw(st.integers(0, LIMITS.n_vocab)),
        tuple(draw(st.lists(st.integers(0, LIMITS.n_vocab - 1), max_size=20))),
        draw(st.booleans()),
        draw(st.integers(0, LIMITS.n_vocab)),
        draw(st.booleans()),
    )
    work = make(
        n,
        n_seen,
        draw(st.lists(st.integers(0, n - 1), max_size=n)),
        draw(st.lists(st.integers(0, (1 << 31) - 1), min_size=n, max_size=n)),
        draw(st.lists(numbers, min_size=n, max_size=n)),
        draw(st.integers(0, (1 << (n * n_seen)) - 1)),
        wanted,
    )
    if draw(st.booleans()):
        cells = st.builds(CellCopy, st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
        kept = st.builds(SequenceCopy, st.just(0), st.just(1), st.integers(0, 100))
        copies = Copies(draw(st.lists(cells, max_size=6).map(tuple)), draw(st.lists(kept, max_size=6).map(tuple)))
        work = replace(work, copies=copies, runs=(Run(1, n, draw(st.booleans())),))
    if draw(st.booleans()):
        counts = draw(st.lists(st.integers(0, n_seen), min_size=n, max_size=n))
        work.visible[:] = np.arange(n_seen)[None, :] < np.array(counts)[:, None]
    return work


@given(passes(), st.booleans())
def test_there_and_back(work: Pass, with_embeddings: bool) -> None:
    """A token that sees no cell at all included."""
    payload = packed(work, with_embeddings)
    assert len(payload) <= CAPACITY
    back = read(payload)
    for name in ("positions", "cells", "visible", "sampled"):
        assert np.array_equal(getattr(back, name), getattr(work, name)), name
    assert back.visible.dtype == np.bool_ and back.visible.shape == work.visible.shape
    assert (back.pass_id, back.wanted, back.runs, back.copies) == (5, work.wanted, work.runs, work.copies)
    if with_embeddings:
        assert back.embeddings is not None and work.embeddings is not None
        assert np.array_equal(back.embeddings, work.embeddings) and back.embeddings.dtype == np.float32
    else:
        assert back.embeddings is None


def test_the_largest_pass_fits() -> None:
    n, full = LIMITS.max_tokens, list(range(LIMITS.max_tokens))
    wanted = Wanted(100, tuple(index % 100 for index in range(MAX_IDS)), False, 100)
    work = make(n, LIMITS.n_cells, full, full, full, 1 << (n * LIMITS.n_cells - 1), wanted)
    assert len(packed(work, True)) <= CAPACITY
    few_cells = PassLimits(n, 3, n, 100, LIMITS.n_embd)
    counted = make(n, 3, full, full, [0] * n, (1 << 3 * n) - 1, wanted)
    buffer = FrameBuffer(pass_capacity(n, 3, LIMITS.n_embd))
    n_bytes = pack_pass(counted, buffer, True)
    assert n_bytes <= buffer.capacity_bytes and unpack_pass(1, buffer.payload[:n_bytes], few_cells) is not None


def test_passes_of_common_sizes_fit_a_frame() -> None:
    assert pass_capacity(512, 32768, 8192) < MAX_PAYLOAD_BYTES


def changed(golden: bytes, offset: int, form: str, *values: Any) -> bytes:
    payload = bytearray(golden)
    struct.pack_into(form, payload, offset, *values)
    return bytes(payload)


NO_FIT = "does not fit the plan"


@pytest.mark.parametrize("golden", [COUNTED, DRAWN], ids=["counted", "drawn"])
@pytest.mark.parametrize(
    ("offset", "form", "value", "said"),
    [
        (0, "<I", 0, NO_FIT),
        (0, "<I", 7, "a pass of 7 tokens"),
        (0, "<I", 0xFFFFFFFF, NO_FIT),
        (4, "<I", 0, NO_FIT),
        (4, "<I", 41, "41 cells"),
        (4, "<I", 0xFFFFFFFF, NO_FIT),
        (8, "<I", 0, NO_FIT),
        (8, "<I", 0xFFFFFFFF, NO_FIT),
        (12, "<I", 101, NO_FIT),
        (12, "<I", 0xFFFFFFFF, NO_FIT),
        (16, "<I", 1, NO_FIT),
        (16, "<I", MAX_IDS + 1, NO_FIT),
        (16, "<I", 0xFFFFFFFF, NO_FIT),
        (20, "<I", 101, NO_FIT),
        (24, "<B", 2, NO_FIT),
        (25, "<B", 1, NO_FIT),
        (25, "<B", 2, NO_FIT),
        (26, "<B", 4, NO_FIT),
        (27, "<B", 1, NO_FIT),
        (28, "<H", 1, NO_FIT),
        (30, "<H", 0xFFFF, NO_FIT),
        (32, "<i", -1, "has a token at position -1,"),
        (40, "<q", 40, "writes to cell 40, allowed are 0 to 39"),
        (40, "<q", -1, "writes to cell -1,"),
        (40, "<q", -(1 << 63), "writes to cell -9223372036854775808,"),
        (56, "<i", 2, "samples row 2, allowed are 0 to 1"),
        (56, "<i", -1, "samples row -1,"),
    ],
)
def test_numbers_that_fit_no_pass(golden: bytes, offset: int, form: str, value: int, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read(changed(golden, offset, form, value))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "shorter than its start"),
        (COUNTED[:31], "shorter than its start"),
        (COUNTED[:-1], NO_FIT),
        (COUNTED + b"\0", NO_FIT),
        (DRAWN[:-1], NO_FIT),
        (DRAWN + b"\0\0\0\0", NO_FIT),
        (bytes(START_BYTES) + b"\0", NO_FIT),
        (changed(bytes(START_BYTES), 24, "<B", 1), NO_FIT),
        (changed(DRAWN, 60, "<i", 100), "wants the logit of token 100, allowed are 0 to 99"),
        (changed(DRAWN, 60, "<i", -1), "wants the logit of token -1,"),
        (changed(COUNTED, 60, "<I", 11), "shows cells before 11, allowed are 0 to 10"),
        (changed(COUNTED, 64, "<I", 0xFFFFFFFF), "shows cells before 4294967295,"),
    ],
)
def test_payloads_that_fit_no_pass(payload: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        unpack_pass(5, memoryview(payload), LIMITS)


@pytest.mark.parametrize(
    ("copies", "said"),
    [
        (Copies((CellCopy(0, 1, 0),)), "copies 0 cells"),
        (Copies((CellCopy(0, 39, 2),)), "copies 2 cells from 0 to 39"),
        (Copies((CellCopy(39, 0, 2),)), "copies 2 cells from 39 to 0"),
        (Copies((), (SequenceCopy(0, 2, 5),)), "of sequence 0 to 2"),
        (Copies((), (SequenceCopy(1, 1, 5),)), "of sequence 1 to 1"),
        (Copies((CellCopy(0, 1, 1),) * (MAX_COPIES + 1)), NO_FIT),
    ],
)
def test_copies_that_no_master_asks_for(copies: Copies, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        read(packed(replace(two_tokens(True), copies=copies)))


def test_more_sampled_rows_than_tokens_or_than_were_planned() -> None:
    """They would overrun the memory that was planned for sampled rows."""
    payload = struct.pack("<IIIIIIBBBBHH", 1, 1, 20, *[0] * 9) + bytes(4 + 8 + 20 * 4 + 1)
    assert len(payload) <= CAPACITY
    with pytest.raises(ProtocolError, match="20 samples does not fit"):
        read(payload)
    few = PassLimits(6, 40, 1, 100, 3)
    assert len(read(COUNTED, few).sampled) == 1
    with pytest.raises(ProtocolError, match="2 samples does not fit"):
        read(packed(make(2, 10, [0, 1], [8, 9], [8, 9], (1 << 20) - 1)), few)


def test_more_ids_than_can_be_asked_for() -> None:
    work, buffer = two_tokens(True, Wanted(1, (1,) * MAX_IDS)), FrameBuffer(2 * CAPACITY)
    assert len(read(bytes(buffer.payload[: pack_pass(work, buffer, False)])).wanted.ids) == MAX_IDS
    work = two_tokens(True, Wanted(1, (1,) * (MAX_IDS + 1)))
    with pytest.raises(ProtocolError, match=NO_FIT):
        read(bytes(buffer.payload[: pack_pass(work, buffer, False)]))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pass_or_refused(payload: bytes) -> None:
    try:
        work = unpack_pass(1, memoryview(payload), LIMITS)
    except ProtocolError:
        return
    assert work is None or (work.cells.max() < LIMITS.n_cells and len(work.sampled) <= work.n_tokens <= 6)


@given(passes(), st.booleans(), st.data())
def test_a_pass_with_any_byte_changed_is_a_pass_or_refused(
    work: Pass, with_embeddings: bool, data: st.DataObject
) -> None:
    payload = bytearray(packed(work, with_embeddings))
    position = data.draw(st.integers(0, len(payload) - 1))
    payload[position] ^= data.draw(st.integers(1, 255))
    try:
        back = unpack_pass(1, memoryview(payload), LIMITS)
    except ProtocolError:
        return
    if back is not None:
        assert back.visible.shape[0] == back.n_tokens <= LIMITS.max_tokens
        assert back.visible.shape[1] <= LIMITS.n_cells and back.cells.max() < LIMITS.n_cells
        assert all(0 <= token < LIMITS.n_vocab for token in back.wanted.ids)
