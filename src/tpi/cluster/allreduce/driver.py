"""Runs sums for a rank: which algorithm for which size, and the waiting. Satisfies ``runtime.protocols.Allreduce``.

Owns the algorithms and the helper's thread; the mesh is the caller's. The thread that runs passes begins all sums. It
carries small ones through itself; large ones, of which two may be under way, the helper carries through while that
thread computes. One lock guards the links; nobody holds it while waiting.

Nothing of a sum is sent before those of the blocks before have ended here: frames of a link come in the order in which
they were sent, and a peer that waits for the end of an earlier sum, before it begins this one, would never see it.
"""

import contextlib
import threading
from dataclasses import dataclass
from typing import Self

import numpy as np

from tpi.cluster.allreduce.algorithm import Algorithm, Waits
from tpi.cluster.allreduce.arithmetic import Arithmetic, NativeArithmetic
from tpi.cluster.allreduce.nativephases import NativePhases
from tpi.cluster.allreduce.payload import check_sum, raise_fault
from tpi.cluster.allreduce.phases import Phased
from tpi.cluster.mesh.datalink import Exchange
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import NativeMesh
from tpi.errors import LinkError
from tpi.model.flow import Flow
from tpi.runtime.protocols import Float32Array, NativeSum, SumStep

_THREAD = "tpi-sums"


@dataclass(slots=True)
class _Running:
    """A sum that is carried through in Python."""

    waits: Waits
    exchange: Exchange
    is_helped: bool = False
    is_done: bool = False
    error: BaseException | None = None


@dataclass(slots=True)
class _Begun:
    """A sum, and what carries it through until it has ended."""

    step: SumStep
    is_few: bool
    running: _Running | NativePhases | None


class Sums:
    """A context manager; ``close`` is idempotent."""

    def __init__(self, mesh: Mesh | None, handing_over: Algorithm | None) -> None:
        """``handing_over`` carries what a single rank contributes; None, both, for a rank that is alone."""
        self._mesh = mesh
        self._handing_over = None if handing_over is None else self._way(handing_over)
        self._few = self._many = self._handing_over
        self._max_few_values = 0
        self._rank = mesh.rank if mesh is not None else 0
        self._arithmetic = Arithmetic()
        self._begun: dict[int, _Begun] = {}
        self._helper: _Helper | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the helper; the mesh must have been shut down if a sum is under way."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def use_for_few(self, algorithm: Algorithm, max_values: int) -> None:
        """Adds up to ``max_values`` at once."""
        self._few, self._max_few_values = self._way(algorithm), max_values

    def use_for_many(self, algorithm: Algorithm) -> None:
        """Adds all larger sums."""
        self._many = self._way(algorithm)

    def overlap(self) -> None:
        """From now on a helper carries large sums through."""
        if self._helper is None and self._mesh is not None:
            self._helper = _Helper(self._mesh)

    def tell_log(self) -> None:
        """See ``Mesh.tell_log``. Between passes."""
        if self._mesh is not None:
            with self._helper.links if self._helper is not None else contextlib.nullcontext():
                self._mesh.tell_log()

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        """See ``Allreduce``."""
        check_sum(step, self._rank, partial, out)
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        is_few = values.size <= self._max_few_values
        for begun in self._begun.values():
            if begun.step.flow.block != step.flow.block or begun.is_few != is_few:
                self._end(begun)
        self._begun[step.part] = _Begun(step, is_few, self._begin(step, partial, out, is_few))

    def _begin(
        self, step: SumStep, partial: Float32Array | None, out: Float32Array | None, is_few: bool
    ) -> _Running | NativePhases | None:
        if step.flow.is_local:
            assert partial is not None and out is not None
            raise_fault(step, None if self._arithmetic.is_finite(partial.reshape(-1)) else self._rank)
            if partial is not out:
                np.copyto(out, partial)
            return None
        flat_partial = None if partial is None else partial.reshape(-1)
        flat_out = None if out is None else out.reshape(-1)
        way = self._handing_over if len(step.flow.contributors) == 1 else self._few if is_few else self._many
        assert way is not None, "a rank that is alone has local sums only"
        if is_few and way.native is not None and way.native.can_run(step):
            way.native.start(step, flat_partial, flat_out)
            return way.native
        waits = way.algorithm.run(step, flat_partial, flat_out)
        if is_few or self._helper is None:
            return _Running(waits, next(waits))
        return self._helper.begin(waits)

    def finish(self, step: SumStep) -> None:
        """See ``Allreduce``."""
        self._end(self._begun.pop(step.part))

    def _end(self, begun: _Begun) -> None:
        """Waits for a sum's end, once."""
        running, begun.running = begun.running, None
        if running is None:
            return
        if isinstance(running, NativePhases):
            running.finish(begun.step)
            return
        if running.is_helped:
            assert self._helper is not None
            self._helper.finish(running)
            return
        assert self._mesh is not None
        exchange: Exchange | None = running.exchange
        while exchange is not None:
            self._mesh.wait(exchange)
            exchange = next(running.waits, None)

    def native(self, flow: Flow, n_values: int) -> NativeSum | None:
        """See ``Allreduce``."""
        if n_values > self._max_few_values:
            return None
        way = self._handing_over if len(flow.contributors) == 1 else self._few
        return None if way is None or way.native is None else way.native.try_find(flow)

    def _way(self, algorithm: Algorithm) -> "_Way":
        native, arithmetic = None, algorithm.scale.arithmetic
        is_native = isinstance(self._mesh, NativeMesh) and isinstance(arithmetic, NativeArithmetic)
        if is_native and isinstance(algorithm, Phased):
            assert isinstance(self._mesh, NativeMesh) and isinstance(arithmetic, NativeArithmetic)
            native = NativePhases(algorithm, self._mesh, arithmetic)
        return _Way(algorithm, native)


@dataclass(frozen=True)
class _Way:
    """An algorithm, and what carries its small sums through in C, if that is there."""

    algorithm: Algorithm
    native: NativePhases | None


class _Helper:
    """The thread that carries sums through, and what it has to do."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.links = threading.Condition()
        """Guards the links, too."""
        self._running: list[_Running] = []
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        self._thread.start()

    def close(self) -> None:
        with self.links:
            self._is_closing = True
            self.links.notify_all()
        self._mesh.wake()
        self._thread.join()

    # The thread that runs passes.

    def begin(self, waits: Waits) -> _Running:
        """Starts a sum; its first bytes leave now."""
        with self.links:
            running = _Running(waits, next(waits), is_helped=True)
            self._running.append(running)
            self.links.notify_all()
        self._mesh.wake()
        return running

    def finish(self, running: _Running) -> None:
        """Waits until the sum is done; raises what ended it."""
        with self.links:
            self.links.wait_for(lambda: running.is_done)
        if running.error is not None:
            raise running.error

    # The helper's thread.

    def _run(self) -> None:
        while True:
            with self.links:
                self.links.wait_for(lambda: self._running or self._is_closing)
                if self._is_closing:
                    return
                self._mesh.arm()
            with contextlib.suppress(LinkError):  # move says it, too
                self._mesh.sleep()
            with self.links:
                try:
                    self._mesh.move()
                    self._advance()
                except BaseException as error:
                    for running in list(self._running):
                        self._end(running, error)

    def _advance(self) -> None:
        for running in list(self._running):
            try:
                while running.exchange.n_left == 0 and not running.is_done:
                    exchange = next(running.waits, None)
                    if exchange is None:
                        self._end(running)
                    else:
                        running.exchange = exchange
            except BaseException as error:
                self._end(running, error)

    def _end(self, running: _Running, error: BaseException | None = None) -> None:
        running.is_done, running.error = True, error
        self._running.remove(running)
        self.links.notify_all()
