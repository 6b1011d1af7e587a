"""Shard transfer between its two ends, with a link made of queues: requests that make no sense, ends at bad moments."""

import queue
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from tests.models import write_random_model
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import AnyMessage, FetchRun, RunChunk
from tpi.cluster.transfer.slices import MAX_REQUESTS, LinkSource, RunServer
from tpi.errors import ChecksumError, LinkError, ModelFileError, ProtocolError, TpiError
from tpi.gguf.reader import Gguf, read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.model.spans import Span, Spans
from tpi.weights.files import read_exactly
from tpi.weights.patches import Patch
from tpi.weights.slices import GgufSource
from tpi.weights.strips import Strips

WAIT_S = 20.0
ONE_ROW = FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(0, 32),))


class Pipe:
    """What both ends need of a control link: hands each message to a function."""

    peer = "the other"

    def __init__(self, take: Callable[[AnyMessage], None]) -> None:
        self._take = take

    def wait_send(self, message: AnyMessage, timeout_s: float | None = None) -> None:
        self._take(message)


def link(take: Callable[[AnyMessage], None]) -> ControlLink:
    return cast(ControlLink, Pipe(take))


@pytest.fixture
def gguf(tmp_path: Path) -> Gguf:
    return read_gguf(write_random_model(tmp_path / "model.gguf", types="Q8_0", n_layers=1, n_ff=20_480))


Failures = queue.SimpleQueue[TpiError]


@contextmanager
def served(gguf: Gguf, take: Callable[[AnyMessage], None]) -> Iterator[tuple[RunServer, Failures]]:
    failures: Failures = queue.SimpleQueue()
    with RunServer(link(take), gguf, read_spec(gguf, ""), failures.put) as server:
        yield server, failures


def patch(gguf: Gguf, name: str, rows: Span | None = None, columns: Spans | None = None) -> Patch:
    tensor = gguf.tensors[name]
    return Patch(name, tensor.type.id, rows or Span(0, 1), columns or (Span(0, tensor.n_columns),))


@pytest.mark.parametrize("columns", [None, (Span(64, 20_448),), (Span(32, 64), Span(128, 10_240))])
def test_slices_arrive_as_they_are(gguf: Gguf, columns: Spans | None) -> None:
    wanted = patch(gguf, "blk.0.ffn_down.weight", Span(3, 250), columns)
    sources: list[LinkSource] = []
    with served(gguf, lambda message: sources[0].deliver(cast(RunChunk, message))) as (server, failures):
        sources.append(LinkSource(link(lambda message: server.request(cast(FetchRun, message)))))
        out, same = bytearray(wanted.n_bytes), bytearray(wanted.n_bytes)
        for _ in range(2):
            sources[0].read(wanted, memoryview(out))
    with GgufSource(gguf) as source:
        source.read(wanted, memoryview(same))
    assert out == same and any(out) and failures.empty()
    assert len(out) > 1 << 20 or columns is not None


@pytest.mark.parametrize(
    "run",
    [
        FetchRun(1, "nothing", Span(0, 1), (Span(0, 32),)),
        FetchRun(1, "\x1b[2J", Span(0, 1), (Span(0, 32),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(0, 33),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(1, 33),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(0, 1 << 50),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(0, 0),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(-32, 32),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), ()),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(0, 64), Span(32, 96))),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1), (Span(64, 96), Span(0, 32))),
        FetchRun(1, "blk.0.ffn_up.weight", Span(-5, 1), (Span(0, 32),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(5, 1), (Span(0, 32),)),
        FetchRun(1, "blk.0.ffn_up.weight", Span(0, 1 << 40), (Span(0, 32),)),
    ],
)
def test_requests_that_make_no_sense(gguf: Gguf, run: FetchRun) -> None:
    sent: list[AnyMessage] = []
    with served(gguf, sent.append) as (server, failures):
        server.request(run)
        failure = failures.get(timeout=WAIT_S)
    assert isinstance(failure, ProtocolError) and str(failure).isprintable()
    assert sent == [] and failures.empty()


def test_a_model_that_is_gone_is_told(gguf: Gguf) -> None:
    gguf.paths[0].unlink()
    with served(gguf, lambda message: None) as (_, failures):
        assert isinstance(failures.get(timeout=WAIT_S), ModelFileError)


def test_a_link_that_ends_ends_the_server(gguf: Gguf) -> None:
    asked = threading.Event()

    def lose(message: AnyMessage) -> None:
        asked.set()
        raise LinkError("gone")

    with served(gguf, lose) as (server, failures):
        server.request(ONE_ROW)
        assert asked.wait(WAIT_S)
    assert failures.empty()


def test_a_worker_cannot_ask_for_more_than_it_waits_for(gguf: Gguf) -> None:
    """Nor does it keep the master from ending: what waits is left."""
    answering, go_on = threading.Event(), threading.Event()
    sent: list[AnyMessage] = []

    def answer(message: AnyMessage) -> None:
        sent.append(message)
        answering.set()
        assert go_on.wait(WAIT_S)

    with served(gguf, answer) as (server, failures):
        server.request(ONE_ROW)
        assert answering.wait(WAIT_S)
        for _ in range(MAX_REQUESTS):
            server.request(ONE_ROW)
        for _ in range(3):
            with pytest.raises(ProtocolError, match="the other asks for more than 64 runs at once"):
                server.request(ONE_ROW)
        threading.Timer(0.05, go_on.set).start()
    assert len(sent) == 1 and failures.empty()
    server.close()


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (RunChunk(1, 0, 5, bytes(272)), ChecksumError),
        (RunChunk(1, 1, zlib.crc32(bytes(271)), bytes(271)), LinkError),
        (RunChunk(1, 0, zlib.crc32(bytes(273)), bytes(273)), LinkError),
        (RunChunk(1, -1, zlib.crc32(bytes(272)), bytes(272)), LinkError),
    ],
)
def test_chunks_that_are_wrong(gguf: Gguf, chunk: RunChunk, kind: type[TpiError]) -> None:
    source = LinkSource(link(lambda message: source.deliver(chunk)))
    with pytest.raises(kind):
        source.read(patch(gguf, "blk.0.ffn_up.weight"), memoryview(bytearray(272)))


def test_late_chunks_touch_no_memory(gguf: Gguf) -> None:
    """Whatever comes after a read has failed finds no buffer."""
    out = bytearray(272)

    def lose(message: AnyMessage) -> None:
        raise LinkError("gone")

    source = LinkSource(link(lose))
    with pytest.raises(LinkError, match="gone"):
        source.read(patch(gguf, "blk.0.ffn_up.weight"), memoryview(out))
    source.deliver(RunChunk(1, 0, zlib.crc32(b"\1" * 272), b"\1" * 272))
    assert out == bytes(272)


def test_an_end_between_two_reads_is_not_forgotten(gguf: Gguf) -> None:
    source = LinkSource(link(lambda message: None))
    source.fail(LinkError("the master has ended the session"))
    raised: list[BaseException] = []

    def read() -> None:
        try:
            source.read(patch(gguf, "blk.0.ffn_up.weight"), memoryview(bytearray(272)))
        except LinkError as error:
            raised.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(WAIT_S)
    assert not thread.is_alive() and "ended the session" in str(raised[0])


def test_a_server_that_waits_for_another_rank_ends_at_once(gguf: Gguf) -> None:
    """The rows that both ranks need stay for the other, until there is no more memory for them."""
    spec, shared, sent = read_spec(gguf, ""), Strips(1 << 18), queue.SimpleQueue[AnyMessage]()
    shared.expect(blocks_of(spec), divide(blocks_of(spec), [1, 1]))
    failures: Failures = queue.SimpleQueue()
    with RunServer(link(sent.put), gguf, spec, failures.put, shared) as server:
        server.request(FetchRun(1, "blk.0.ffn_down.weight", Span(0, 256), (Span(0, 64),)))
        deadline_s = time.monotonic() + WAIT_S
        while not shared.n_bytes and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.1)
        assert 0 < shared.n_bytes <= 1 << 18
        began_s = time.monotonic()
        server.close()
        assert time.monotonic() - began_s < 5
    assert sent.qsize() < 6 and failures.empty()


def test_servers_share_what_they_read(gguf: Gguf, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, shared, n_read = read_spec(gguf, ""), Strips(1 << 20), 0

    def count(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
        nonlocal n_read
        n_read += len(out)
        read_exactly(descriptor, path, offset, out)

    monkeypatch.setattr("tpi.weights.modelfiles.read_exactly", count)
    blocks = blocks_of(spec)
    shared.expect(blocks, divide(blocks, [1, 1, 1]))
    received = [threading.Event() for _ in range(3)]
    tensor, n_bytes = spec.tensors["blk.0.ffn_down.weight"], [0, 0, 0]

    def take(rank: int, message: AnyMessage) -> None:
        assert isinstance(message, RunChunk)
        n_bytes[rank] += len(message.data)
        if n_bytes[rank] == 256 * tensor.type.row_bytes(6400):
            received[rank].set()

    with ExitStack() as stack:
        for rank in range(3):
            answer = link(partial(take, rank))
            server = stack.enter_context(RunServer(answer, gguf, spec, raise_it, shared, partial(int, rank)))
            columns = (Span(6400 * rank, 6400 * (rank + 1)),)
            server.request(FetchRun(1, tensor.name, Span(0, 256), columns))
        assert all(event.wait(WAIT_S) for event in received)
    assert n_read == tensor.n_bytes, "once, though each needs a part of every row"


def raise_it(error: TpiError) -> None:
    raise error
