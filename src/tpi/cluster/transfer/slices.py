"""Shard transfer: a worker asks its master for runs of a tensor's rows or columns, and gets them with checksums.

Knows no shards and no files: the worker's end is a ``weights.slices.SliceSource``, the master's end reads from one.
"""

import contextlib
import queue
import threading
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import FetchRun, RunChunk
from tpi.errors import ChecksumError, LinkError, ProtocolError, TpiError
from tpi.gguf.reader import Gguf
from tpi.gguf.types import F32
from tpi.model.metadata import printable
from tpi.model.spec import ModelSpec
from tpi.weights.patches import Patch
from tpi.weights.slices import GgufSource
from tpi.weights.strips import Strips

CHUNK_BYTES = 1 << 20
ANSWER_TIMEOUT_S = 60.0
MAX_REQUESTS = 64
"""Of one worker, which sends one after the other."""


class LinkSource:
    """The worker's end: reads slices over its control link, one run at a time. Satisfies ``SliceSource``.

    ``deliver`` is called by the control link's thread, everything else by the thread that puts the shard together.
    """

    def __init__(self, control: ControlLink) -> None:
        self._control = control
        self._condition = threading.Condition()
        self._out: memoryview | None = None
        self._number = 0
        self._n_received = 0
        self._error: TpiError | None = None
        self._end: TpiError | None = None

    def read(self, patch: Patch, out: memoryview) -> None:
        """See ``SliceSource``.

        Raises:
            LinkError, ChecksumError: the link ended, or a chunk was damaged on its way.
        """
        with self._condition:
            self._number += 1
            self._out, self._n_received, self._error = out, 0, self._end
        try:
            self._control.wait_send(FetchRun(self._number, patch.tensor, patch.rows, patch.columns))
            self._wait_for_run(len(out), patch.tensor)
        finally:
            with self._condition:
                self._out = None

    def _wait_for_run(self, n_bytes: int, tensor: str) -> None:
        with self._condition:
            while self._n_received < n_bytes and self._error is None:
                before = self._n_received
                if not self._condition.wait(ANSWER_TIMEOUT_S) and self._n_received == before:
                    self._error = LinkError(f"{self._control.peer} sent nothing of {tensor} for {ANSWER_TIMEOUT_S:g} s")
            if self._error is not None:
                raise self._error

    def deliver(self, chunk: RunChunk) -> None:
        """A chunk has arrived; chunks of runs that nobody waits for any more are dropped."""
        with self._condition:
            if self._out is None or chunk.number != self._number or self._error is not None:
                return
            end = chunk.offset + len(chunk.data)
            if chunk.offset != self._n_received or end > len(self._out):
                self._error = LinkError(
                    f"{self._control.peer} sent bytes {chunk.offset} to {end} of a run out of order"
                )
            elif zlib.crc32(chunk.data) != chunk.crc32:
                self._error = ChecksumError(
                    f"bytes {chunk.offset} to {end} of a run from {self._control.peer} were damaged: join again"
                )
            else:
                self._out[chunk.offset : end] = chunk.data
                self._n_received = end
            self._condition.notify_all()

    def fail(self, error: TpiError) -> None:
        """The link has ended: whoever waits, now or later, gets ``error``. From any thread."""
        with self._condition:
            self._end = self._error = error
            self._condition.notify_all()


class RunServer:
    """The master's end for one worker: one thread that answers its requests, in order. A context manager.

    ``on_failure`` is called in that thread when it cannot go on; no request is answered afterwards. ``strips`` is what
    it shares with those who serve others, for the rank that ``rank`` tells.
    """

    def __init__(
        self,
        control: ControlLink,
        gguf: Gguf,
        spec: ModelSpec,
        on_failure: Callable[[TpiError], None],
        strips: Strips | None = None,
        rank: Callable[[], int] = lambda: 0,
    ) -> None:
        self._control, self._gguf, self._spec, self._on_failure = control, gguf, spec, on_failure
        self._strips = strips.reader(rank, self._check) if strips is not None else None
        self._requests: queue.Queue[FetchRun | None] = queue.Queue(MAX_REQUESTS + 1)
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"tpi-slices-{control.peer}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread after the request that it answers, or when the link has ended. Idempotent."""
        self._is_closing = True
        with contextlib.suppress(queue.Full):  # then it looks at the flag soon
            self._requests.put_nowait(None)
        self._thread.join()

    def leave(self) -> None:
        """The worker has its shard; others need not wait for it."""
        if self._strips is not None:
            self._strips.leave()

    def request(self, run: FetchRun) -> None:
        """Queues a request; from the control link's thread.

        Raises:
            ProtocolError: the worker asks for more than it waits for.
        """
        if self._requests.qsize() >= MAX_REQUESTS:
            raise ProtocolError(f"{self._control.peer} asks for more than {MAX_REQUESTS} runs at once")
        self._requests.put(run)

    def _run(self) -> None:
        try:
            with GgufSource(self._gguf, self._strips) as source:
                while (run := self._requests.get()) is not None and not self._is_closing:
                    self._answer(source, run)
        except LinkError:
            pass  # whoever watches the link says so
        except TpiError as error:
            self._on_failure(error)

    def _check(self) -> None:
        if self._is_closing:
            raise LinkError(f"the link to {self._control.peer} is closed")

    def _answer(self, source: GgufSource, run: FetchRun) -> None:
        tensor = self._spec.tensors.get(run.tensor)
        wanted = Patch(run.tensor, tensor.type_id if tensor is not None else F32.id, run.rows, run.columns)
        if tensor is None or not wanted.lies_in(tensor.n_rows, tensor.n_columns):
            raise ProtocolError(
                f"{self._control.peer} asks for rows or columns of {printable(run.tensor)} that the model has not"
            )
        step = max(1, CHUNK_BYTES // tensor.type.row_bytes(tensor.n_columns))  # in step with those who share whole rows
        offset = 0
        for row in range(run.rows.start, run.rows.stop, step):
            patch = wanted.with_rows(row, min(row + step, run.rows.stop))
            buffer = memoryview(bytearray(patch.n_bytes))
            source.read(patch, buffer)
            for start in range(0, len(buffer), CHUNK_BYTES):
                data = bytes(buffer[start : start + CHUNK_BYTES])
                self._control.wait_send(RunChunk(run.number, offset, zlib.crc32(data), data))
                offset += len(data)
