"""Passes out, logits back: a master and workers in threads, over meshes in Python and in C."""

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.cluster.mesh.content import LIMIT_S
from tpi.cluster.mesh.datapath import MasterDatapath, WorkerDatapath, frame_bytes
from tpi.cluster.mesh.frames import PayloadType
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.passframes import PassLimits, pass_capacity
from tpi.errors import LinkError, NumericError, ProtocolError, TpiError
from tpi.model.spans import EMPTY, Span
from tpi.runtime.logits import ALL, Row, Wanted, extract, join
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import open_meshes

LIMITS = PassLimits(max_tokens=8, n_cells=64, max_sampled=4, n_vocab=96, n_embd=4)
SPANS = (Span(0, 32), Span(32, 64), EMPTY, Span(64, 96))
WITHOUT_MASTER = (EMPTY, Span(0, 64), Span(64, 96))


def table(pass_id: int) -> Float32Array:
    """Logits of all rows of a pass: few different ones, so that equal ones are common."""
    rows = np.random.default_rng(pass_id).integers(-40, 40, (LIMITS.max_tokens, LIMITS.n_vocab))
    return (rows / 8).astype(np.float32)


def make_pass(pass_id: int, sampled: Sequence[int], wanted: Wanted = ALL, n_tokens: int = 8) -> Pass:
    cells = np.arange(n_tokens)
    return Pass(
        pass_id=pass_id,
        embeddings=np.full((n_tokens, LIMITS.n_embd), pass_id, np.float32),
        positions=cells.astype(np.int32),
        cells=cells.astype(np.int64),
        visible=cells[None, :] <= cells[:, None],
        sampled=np.array(sampled, np.int32),
        wanted=wanted,
    )


class Ranks:
    """The master's end, and workers that answer as ranks do; ``passes`` are those that each has got, ``orders`` what
    came between, with the number of passes before."""

    def __init__(self, meshes: Sequence[Mesh], spans: Sequence[Span], first_members: Sequence[int]) -> None:
        self.meshes, self.spans = meshes, spans
        self.master = MasterDatapath(meshes[0], LIMITS, first_members, spans)
        self.passes: dict[int, list[Pass]] = {mesh.rank: [] for mesh in meshes[1:]}
        self.orders: dict[int, list[tuple[bytes, int]]] = {mesh.rank: [] for mesh in meshes[1:]}
        self.news = threading.Condition()
        self.errors: dict[int, LinkError] = {}
        self.n_rests = 0
        self.threads = [threading.Thread(target=self._serve, args=(mesh, first_members)) for mesh in meshes[1:]]
        for thread in self.threads:
            thread.start()

    def _serve(self, mesh: Mesh, first_members: Sequence[int]) -> None:
        span = self.spans[mesh.rank]
        passes, orders = self.passes[mesh.rank], self.orders[mesh.rank]

        def keep(order: bytes) -> None:
            orders.append((order, len(passes)))
            self._tell()

        worker = WorkerDatapath(mesh, LIMITS, mesh.rank in first_members, span, keep)
        work: Pass | None = None
        logits: Float32Array | None = None
        try:
            while True:
                order = worker.receive()
                if order is not None:
                    # What was received stays valid until the next call.
                    passes.append(
                        replace(
                            order,
                            embeddings=None if order.embeddings is None else order.embeddings.copy(),
                            sampled=order.sampled.copy(),
                        )
                    )
                    self._tell()
                    work, logits = order, self._logits(order, mesh.rank)
                    worker.send_logits(work, logits)
                else:
                    assert work is not None
                    self.n_rests += 1
                    worker.send_rest(work, logits)
        except LinkError as error:
            self.errors[mesh.rank] = error
        except BaseException as error:
            self.meshes[0].shut_down(LinkError(f"rank {mesh.rank} has failed: {error!r}"))
            raise

    def _tell(self) -> None:
        with self.news:
            self.news.notify_all()

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(is_there, 10)

    def _logits(self, work: Pass, rank: int) -> Float32Array | None:
        span = self.spans[rank]
        if not span.size or not len(work.sampled):
            return None
        return np.ascontiguousarray(table(work.pass_id)[work.sampled, span.start : span.stop])

    def run(self, work: Pass) -> tuple[Row, ...]:
        self.master.broadcast(work)
        return self.master.gather(work, self._logits(work, 0))

    def rest(self, work: Pass) -> tuple[Row, ...]:
        return self.master.gather_rest(work, self._logits(work, 0))


@contextmanager
def open_ranks(
    with_helper: bool, spans: Sequence[Span] = SPANS, first_members: Sequence[int] = (0, 1)
) -> Iterator[Ranks]:
    with open_meshes(len(spans), with_helper=with_helper) as meshes:
        ranks = Ranks(meshes, spans, first_members)
        try:
            yield ranks
        finally:
            for mesh in meshes[1:]:
                mesh.shut_down(LinkError("the test is over"))
            for thread in ranks.threads:
                thread.join(LIMIT_S)
                assert not thread.is_alive()


@pytest.fixture(params=[True, False], ids=["C", "python"])
def with_helper(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def assert_same(ours: Row, expected: Row) -> None:
    assert np.array_equal(ours.values, expected.values) and ours.floor == expected.floor
    assert (ours.ids is None) == (expected.ids is None)
    assert ours.ids is None or expected.ids is None or np.array_equal(ours.ids, expected.ids)
    assert ours.log_sum_exp == expected.log_sum_exp or np.isnan([ours.log_sum_exp, expected.log_sum_exp]).all()


def expected_parts(work: Pass, spans: Sequence[Span]) -> list[Row]:
    """As if all slices were extracted here."""
    rows = []
    for row in table(work.pass_id)[work.sampled]:
        parts = [extract(row[span.start : span.stop], span.start, work.wanted) for span in spans if span.size]
        rows.append(join(parts, work.wanted))
    return rows


@pytest.mark.parametrize("spans", [SPANS, WITHOUT_MASTER], ids=["master", "workers"])
def test_the_best_of_every_slice(with_helper: bool, spans: Sequence[Span]) -> None:
    wanteds = [
        Wanted(1),
        Wanted(5, (0, 40, 95)),
        Wanted(90, (3,)),
        Wanted(7, (3, 70, 90), n_tokens=70),
        Wanted(2, (10,), n_tokens=20),
        Wanted(96, is_exact=False),
    ]
    with open_ranks(with_helper, spans) as ranks:
        for number, wanted in enumerate(wanteds, start=1):
            work = make_pass(number, [7, 0, 3], wanted)
            whole = table(number)[work.sampled, : wanted.n_tokens or None]
            for ours, expected, row in zip(ranks.run(work), expected_parts(work, spans), whole, strict=True):
                assert_same(ours, expected)
                assert ours.best() == Row(row).best()


@pytest.mark.parametrize("spans", [SPANS, WITHOUT_MASTER], ids=["master", "workers"])
@pytest.mark.parametrize("n_tokens", [0, 70])
def test_all_of_every_row(with_helper: bool, spans: Sequence[Span], n_tokens: int) -> None:
    """In 32 bits where every bit counts, otherwise in 16; what is the master's own stays as it is."""
    with open_ranks(with_helper, spans) as ranks:
        for number, is_exact in enumerate([True, False, True], start=1):
            work = make_pass(number, [1, 6], Wanted(is_exact=is_exact, n_tokens=n_tokens))
            for ours, logits in zip(ranks.run(work), table(number)[[1, 6]], strict=True):
                expected = logits.copy()
                if not is_exact:
                    expected[spans[0].size :] = expected[spans[0].size :].astype(np.float16)
                assert ours.is_all and np.array_equal(ours.values, expected[: n_tokens or None])


def test_sixteen_bits_are_fewer_bytes(with_helper: bool) -> None:
    received = []
    with open_ranks(with_helper) as ranks:
        for number, wanted in enumerate([ALL, Wanted(is_exact=False), Wanted(1)], start=1):
            before = ranks.meshes[0].counts()[1]
            ranks.run(make_pass(number, [0], wanted))
            received.append(ranks.meshes[0].counts()[1] - before)
    headers = 2 * 32
    assert received == [headers + 64 * 4, headers + 64 * 2, headers + 2 * (8 + 8)]


def test_the_rest_of_a_row_comes_when_it_is_asked_for(with_helper: bool) -> None:
    with open_ranks(with_helper) as ranks:
        for number in (1, 2):
            work = make_pass(number, [2, 5], Wanted(3, (50,), n_tokens=90))
            ranks.run(work)
            for _ in range(2):
                for ours, logits in zip(ranks.rest(work), table(number)[[2, 5]], strict=True):
                    expected = logits.copy()
                    expected[32:] = expected[32:].astype(np.float16)
                    assert ours.is_all and np.array_equal(ours.values, expected[:90])
        assert_same(ranks.run(make_pass(3, [4], Wanted(2)))[0], expected_parts(make_pass(3, [4], Wanted(2)), SPANS)[0])
        assert ranks.n_rests == 8, "who has no rows of the head is not asked"


def test_an_order_comes_behind_the_passes_before(with_helper: bool) -> None:
    with open_ranks(with_helper) as ranks:
        for number in (1, 2):
            ranks.run(make_pass(number, [0], Wanted(1)))
            for mesh in ranks.meshes[1:]:
                ranks.master.send_order(number, b"rank %d" % mesh.rank, mesh.rank)
        assert_same(ranks.run(make_pass(3, [4], Wanted(2)))[0], expected_parts(make_pass(3, [4], Wanted(2)), SPANS)[0])
        ranks.wait_for(lambda: all(len(orders) == 2 for orders in ranks.orders.values()))
        for rank, orders in ranks.orders.items():
            assert orders == [(b"rank %d" % rank, 1), (b"rank %d" % rank, 2)]


def test_every_worker_gets_the_pass_and_who_begins_the_embeddings(with_helper: bool) -> None:
    with open_ranks(with_helper, first_members=(0, 2)) as ranks:
        for number in (1, 2, 3):
            work = make_pass(number, [0], Wanted(1), n_tokens=number)
            ranks.run(work)
        ranks.wait_for(lambda: all(len(passes) == 3 for passes in ranks.passes.values()))
    for rank, passes in ranks.passes.items():
        assert [work.pass_id for work in passes] == [1, 2, 3]
        for number, work in enumerate(passes, start=1):
            assert work.n_tokens == number and work.wanted == Wanted(1)
            if rank == 2:
                assert work.embeddings is not None and (work.embeddings == number).all()
            else:
                assert work.embeddings is None


def test_passes_that_sample_nothing_are_not_answered(with_helper: bool) -> None:
    """As all but the last of a long prompt."""
    with open_ranks(with_helper) as ranks:
        for number in range(1, 40):
            assert ranks.run(make_pass(number, [])) == ()
        assert len(ranks.run(make_pass(40, [0, 1, 2, 3], Wanted(1)))) == 4
        assert ranks.meshes[0].counts()[1] == 2 * (32 + 4 * 16)


def test_the_end_of_the_links_ends_who_waits(with_helper: bool) -> None:
    with open_ranks(with_helper) as ranks:
        ranks.run(make_pass(1, [0], Wanted(1)))
        ranks.meshes[1].shut_down(LinkError("the epoch is over"))
        ranks.threads[0].join(LIMIT_S)
        assert str(ranks.errors[1]) == "the epoch is over"
        ranks.meshes[1].close()
        with pytest.raises(LinkError, match=r"rank 1 closed the data link|the data link to rank 1 broke"):
            for number in range(2, 9):
                ranks.run(make_pass(number, [0], Wanted(1)))


def entry(log_sum_exp: float, ids: Sequence[int], values: Sequence[float], asked: Sequence[float]) -> bytes:
    return struct.pack("<d", log_sum_exp) + b"".join(
        np.array(numbers, form).tobytes() for numbers, form in ((ids, "<i4"), (values, "<f4"), (asked, "<f4"))
    )


GOOD = entry(3.0, [32, 33], [1.0, 2.0], [np.nan])
BEST = Wanted(2, (7,))
HERE = Wanted(2, (40,))


@pytest.mark.parametrize(
    ("wanted", "kind", "content", "error", "said"),
    [
        (BEST, PayloadType.BYTES, GOOD[:-1], ProtocolError, "rank 1 sent 27 bytes of BYTES as logits, which are none"),
        (BEST, PayloadType.BYTES, b"", ProtocolError, "sent 0 bytes of BYTES as logits"),
        (BEST, PayloadType.F32, GOOD, ProtocolError, "sent 28 bytes of F32 as logits"),
        (BEST, PayloadType.BYTES, entry(np.nan, [32, 33], [1, 2], [0]), ProtocolError, "which are none"),
        (BEST, PayloadType.BYTES, entry(np.inf, [32, 33], [1, 2], [0]), ProtocolError, "which are none"),
        (BEST, PayloadType.BYTES, entry(3.0, [31, 33], [1, 2], [0]), ProtocolError, "which are none"),
        (BEST, PayloadType.BYTES, entry(3.0, [32, 64], [1, 2], [0]), ProtocolError, "which are none"),
        (
            BEST,
            PayloadType.BYTES,
            entry(3.0, [32, 33], [1, np.nan], [0]),
            NumericError,
            r"rank 1 \(rank 1\) sent",
        ),
        (BEST, PayloadType.BYTES, entry(3.0, [32, 33], [1, 2], [0]), ProtocolError, "sent logits of tokens that"),
        (HERE, PayloadType.BYTES, entry(3.0, [32, 33], [1, 2], [np.nan]), ProtocolError, "not all that were asked for"),
        (HERE, PayloadType.BYTES, entry(3.0, [32, 33], [1, 2], [np.inf]), ProtocolError, "not all that were asked for"),
        (ALL, PayloadType.F32, bytes(127), ProtocolError, "sent 127 bytes of F32 as logits"),
        (ALL, PayloadType.F16, bytes(128), ProtocolError, "sent 128 bytes of F16 as logits"),
        (ALL, PayloadType.BYTES, bytes(128), ProtocolError, "sent 128 bytes of BYTES as logits"),
        (ALL, PayloadType.F32, np.full(32, np.inf, "<f4").tobytes(), NumericError, "sent logits that are not finite"),
        (ALL, PayloadType.F32, bytes(129), ProtocolError, "rank 1 sent 129 bytes for pass 1 block none phase LOGITS"),
    ],
)
def test_logits_that_no_worker_sends(
    with_helper: bool, wanted: Wanted, kind: PayloadType, content: bytes, error: type[TpiError], said: str
) -> None:
    spans = (Span(0, 32), Span(32, 64))
    with open_meshes(2, with_helper=with_helper) as (mesh, other):
        master = MasterDatapath(mesh, LIMITS, (0,), spans)
        worker = WorkerDatapath(other, LIMITS, False, spans[1])
        work = make_pass(1, [0], wanted)
        master.broadcast(work)
        received = worker.receive()
        assert received is not None
        worker._send(received, kind, content)
        with pytest.raises(error, match=said):
            master.gather(work, table(1)[:1, :32].copy())


@pytest.mark.parametrize("n_cells", [64, 4096])
def test_frames_are_as_large_as_is_planned(n_cells: int) -> None:
    limits = replace(LIMITS, n_cells=n_cells)
    mask = limits.max_tokens * n_cells
    assert frame_bytes(limits, True, True) == pass_capacity(8, n_cells, 4) > frame_bytes(limits, False, True)
    assert frame_bytes(limits, True, False) == frame_bytes(limits, True, True) + mask
    check: Callable[[bool], int] = lambda is_first: frame_bytes(limits, is_first, False) - mask  # noqa: E731
    with open_meshes(3) as meshes:
        spans = (Span(0, 32), Span(32, 64), Span(64, 96))
        assert MasterDatapath(meshes[0], limits, (0, 1), spans)._pass.capacity_bytes == frame_bytes(limits, True, True)
        assert MasterDatapath(meshes[0], limits, (0,), spans)._pass.capacity_bytes == frame_bytes(limits, False, True)
        for is_first in (True, False):
            assert WorkerDatapath(meshes[1], limits, is_first, spans[1])._pass.capacity_bytes == check(is_first)
