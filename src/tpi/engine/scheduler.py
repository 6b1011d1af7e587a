"""Runs the passes of all answers under way: who gets how many tokens of the next one, and what comes of it.

``step`` is to be called by one thread, as long as there is something to do; ``submit`` and ``cancel`` by any.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from tpi.engine.cells import count_alike
from tpi.engine.chunks import ChunkSizes, next_chunk
from tpi.engine.dry import BreakerFinder
from tpi.engine.errands import Errands, Result
from tpi.engine.generation import Generation, Request
from tpi.engine.passes import Passes, Rows
from tpi.engine.runner import PassRunner
from tpi.engine.sequences import Sequences
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import BusyError, Cancelled, TpiError
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import Row
from tpi.runtime.passes import BLOCK_CELLS

MAX_WAITING = 64
_GONE_AS_WELL = 8
"""With those who want no more, which are let go with the next pass, so many times as many may wait."""

_GATHER_S = 0.05
_JUST_BEGUN = 4
"""An answer of fewer tokens; passes are as long then as they are for prompts alone."""

Batch: TypeAlias = list[tuple[Generation, Rows]]
"""Who takes part in a pass, with what."""


@dataclass(frozen=True)
class Load:
    """What there is to do: answers that grow, with the tokens of them and their prompts; and others that wait."""

    n_running: int
    n_waiting: int
    n_tokens: int


class Scheduler:
    """The parts belong to the caller."""

    def __init__(
        self,
        runner: PassRunner,
        table: EmbeddingTable,
        vocabulary: Vocabulary,
        *,
        keeps_ended: bool = False,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """``keeps_ended``: see ``Sequences``. At most ``max_waiting`` wait for a place."""
        self._runner, self._vocabulary = runner, vocabulary
        self._sequences = Sequences(runner, keeps_ended=keeps_ended)
        self._passes = Passes(runner, self._sequences, table)
        self._n_tokens = min(vocabulary.n_tokens, runner.spec.n_vocab)
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._failure: TpiError | None = None
        """After this nothing can be computed any more."""
        self._has_work = threading.Condition(self._lock)
        self._waiting: deque[Generation] = deque()
        self._n_expected = 0
        """Requests that are being read, and will be submitted."""
        self._running: list[Generation] = []
        """In the order in which they were taken in."""
        self._under_way: _UnderWay | None = None
        self._unheard: list[Callable[[], None]] = []
        """Tell whoever asked that there is news: not before the next pass is being computed, since they would want the
        interpreter as well."""
        self._sizes = ChunkSizes()
        self._breakers = BreakerFinder(vocabulary)
        self._helper = ThreadPoolExecutor(1, "tpi-masks")
        self._errands = Errands()

    def close(self) -> None:
        """No step will come; idempotent."""
        self._helper.shutdown(cancel_futures=True)

    def wait(self, timeout_s: float) -> bool:
        """Waits until there is something to do; whether there is."""
        with self._lock:
            return self._has_work.wait_for(lambda: not self.is_idle, timeout_s)

    @property
    def is_idle(self) -> bool:
        """There is nothing to do."""
        return not self._waiting and not self._running and not self._errands

    @property
    def failure(self) -> TpiError | None:
        """After this nothing can be computed any more. Any thread."""
        return self._failure

    @property
    def load(self) -> Load:
        """As it is now. Any thread."""
        running = list(self._running)
        return Load(len(running), len(self._waiting), sum(len(generation.tokens) for generation in running))

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Around what will end in ``submit``, soon. Any thread."""
        with self._lock:
            self._n_expected += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_expected -= 1
                self._has_work.notify_all()

    def gather(self) -> None:
        """Where nobody is answered yet, waits a moment for those who are expected: a crowd begins together."""
        with self._lock:
            if not self._running:
                self._has_work.wait_for(lambda: not self._n_expected, _GATHER_S)

    def pin(self, tokens: Sequence[int]) -> None:
        """See ``Sequences.pin``. Before anybody asks."""
        self._sequences.pin(tokens)

    def pin_again(self, tokens: Sequence[int]) -> None:
        """Pins these instead, soon; but not while somebody is here whose text might have no room then. Any thread.
        Raises as ``between``."""
        self.between(partial(self._pin_again, tokens))

    def _pin_again(self, tokens: Sequence[int], sequences: Sequences) -> None:
        with self._lock:
            lengths = [len(generation.tokens) for generation in self._waiting]
            lengths += [generation.sequence.n_most for generation in self._running if generation.sequence is not None]
            if max(lengths, default=0) <= self._runner.n_cells - sequences.n_pinned:
                sequences.pin_again(tokens)

    @property
    def pinned(self) -> tuple[int, ...]:
        """See ``Sequences.pinned``. Any thread."""
        return self._sequences.pinned

    @property
    def n_pinned(self) -> int:
        """See ``Sequences.n_pinned``. Any thread."""
        return self._sequences.n_pinned

    def submit(self, request: Request, notify: Callable[[], None] = lambda: None) -> Generation:
        """Takes a request in; ``notify`` is called when there is news of it.

        Raises:
            UsageError: the prompt is empty, or longer than the context.
            BusyError: too many wait already.
        """
        texts = request.sampling.dry_breakers if request.sampling.dry_multiplier > 0 else ()
        breakers = self._breakers.find(texts)
        tell = partial(self._unheard.append, notify)
        generation = Generation(request, self._vocabulary, self._n_tokens, tell, self._helper, breakers)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._sequences.check_length(request.prompt, is_new=request.on_streams is not None)
            n_waiting = sum(not other.is_cancelled for other in self._waiting)
            if n_waiting >= self._max_waiting or len(self._waiting) >= _GONE_AS_WELL * self._max_waiting:
                raise BusyError(f"{n_waiting} requests wait already, at most {self._max_waiting} may: try again later")
            self._waiting.append(generation)
            self._has_work.notify_all()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Its answer ends: with the pass that runs, if others have a part in that, or else at once. Does not wait."""
        generation.is_cancelled = True
        if (under_way := self._under_way) is not None and under_way.is_unwanted:
            self._runner.cancel(under_way.pass_id)

    def between(self, work: Callable[[Sequences], Result]) -> "Future[Result]":
        """Has ``work`` done between two steps, by the thread that runs them. Raises as ``Errands.add``."""
        with self._lock:
            if self._failure is not None:
                raise self._failure
            future = self._errands.add(work)
            self._has_work.notify_all()
        return future

    def step(self) -> None:
        """One pass: takes in who waits, computes the next tokens of some, draws, hands out.

        Raises:
            TpiError: a pass failed; all answers have ended with that.
        """
        batch: Batch = []
        try:
            self._sequences.prepare()
            self._errands.run(self._sequences)
            self._take_in()
            if batch := self._pick():
                with self._wanted(batch):
                    self._hand_out(batch, self._compute(batch))
            else:
                self._sequences.drop_copies()
        except Cancelled:
            self._stopped(batch)
        except TpiError as error:
            self.fail(error)
            raise
        self.let_go()
        if self.is_idle or not batch:
            self._tell()

    def fail(self, error: TpiError, *, is_final: bool = False) -> None:
        """Ends all answers; if it ``is_final``, nobody can ask any more."""
        with self._lock:
            self._failure = error if is_final else None
            waiting, self._waiting = self._waiting, deque()
        for generation in (*self._running, *waiting):
            generation.end("error", error)
        self._errands.fail(error)
        self.let_go()
        self._tell()

    # The parts of a step, in their order.

    def _take_in(self) -> None:
        """Whoever came first, as long as there is room; but for those who begin with what is just being read: they wait
        for it."""
        self.let_go()
        for generation in list(self._waiting):
            is_new, request = generation.is_each_wanted, generation.request
            if not is_new and self._is_being_read(generation):
                continue
            sequence = self._sequences.begin(generation.tokens, request.marks, request.settings.slot, is_new=is_new)
            if sequence is None:
                return
            generation.begin(sequence)
            self._running.append(generation)
            with self._lock:
                self._waiting.remove(generation)

    def _is_being_read(self, generation: Generation) -> bool:
        """Whether another answer's prompt, which begins alike, is not computed so far yet. Then it is to be kept how
        far."""
        for other in self._running:
            if other.sequence is not None and not other.is_decoding:
                sequence, n_alike = other.sequence, count_alike(other.tokens, generation.tokens)
                n_alike = min(n_alike, len(generation.tokens) - 1)
                if n_alike > len(sequence.tokens) and n_alike - sequence.n_cached >= BLOCK_CELLS:
                    self._sequences.mark(sequence, n_alike)
                    return True
        return False

    def _pick(self) -> Batch:
        """One token of everybody who has got so far, as long as logits may be wanted of so many rows; the rest of the
        pass is for prompts, whoever came first."""
        picked: Batch = []
        decoding = [generation for generation in self._running if generation.is_decoding]
        reading = [generation for generation in self._running if not generation.is_decoding]
        for generation in decoding[: min(self._runner.max_sampled, self._runner.max_tokens)]:
            self._add(picked, generation, 1)
        # Answers that have just begun wait for those that came with them: else all would begin one by one.
        if all(generation.answer.n_tokens < _JUST_BEGUN for generation, _ in picked):
            n_left = self._runner.max_tokens - len(picked)
        else:
            n_left = self._sizes.budget(len(picked), self._runner.max_tokens)
        for generation in reading:
            n_rows = self._runner.max_sampled - sum(max(1, rows.n_wanted) for _, rows in picked)
            if n_left and n_rows > 0:
                n_left -= self._add(picked, generation, min(n_left, n_rows) if generation.is_each_wanted else n_left)
        return picked

    @contextmanager
    def _wanted(self, batch: Batch) -> Iterator[None]:
        """Around a pass: when nobody who takes part wants it any more, it ends.

        Raises:
            Cancelled: it need not begin.
        """
        generations = tuple(generation for generation, _ in batch)
        self._under_way = _UnderWay(self._passes.next_pass, generations, self._sequences.can_stop)
        try:
            if self._under_way.is_unwanted:
                self._passes.next_pass += 1  # somebody may be about to stop the pass of this number
                raise Cancelled("nobody wants the pass")
            yield
        finally:
            self._under_way = None

    def _compute(self, batch: Batch) -> tuple[Row, ...]:
        n_answers = sum(generation.is_decoding for generation, _ in batch)
        n_read = sum(len(rows.tokens) for generation, rows in batch if not generation.is_decoding)
        with self._sizes.timed(n_answers, n_read):
            return self._passes.run([rows for _, rows in batch], self._tell)

    def _hand_out(self, batch: Batch, result: Sequence[Row]) -> None:
        rest: list[Row] = []

        def find_rest(number: int) -> Row:
            rest[:] = rest or self._runner.rest()
            return rest[number]

        number = 0
        for generation, rows in batch:
            own, number = result[number : number + rows.n_wanted], number + rows.n_wanted
            assert generation.sequence is not None
            if rows.is_each_wanted:
                generation.take_streams(own)
            elif own:
                generation.draw(own[0], partial(find_rest, number - 1), generation.sequence.n_left)

    def let_go(self) -> None:
        """Ends the answers of those who want no more, and frees what complete ones had. A part of every step."""
        with self._lock:
            unwanted = [generation for generation in self._waiting if generation.is_cancelled]
            for generation in unwanted:
                self._waiting.remove(generation)
        unwanted += [generation for generation in self._running if generation.is_cancelled]
        for generation in unwanted:
            generation.end("cancelled")
        for generation in [generation for generation in self._running if generation.is_over]:
            assert generation.sequence is not None
            self._sequences.end(generation.sequence)
            self._running.remove(generation)

    # Helpers.

    def _tell(self) -> None:
        told, self._unheard[:] = list(self._unheard), []
        for notify in told:
            notify()

    def _add(self, picked: Batch, generation: Generation, n_most: int) -> int:
        """Adds the next tokens of ``generation``; gives their number. If there is no room for any, whoever came last
        makes room, and begins anew later."""
        sequence = generation.sequence
        if sequence is None:
            return 0
        n_wanted = min(generation.n_pending, sequence.n_to_mark or generation.n_pending)
        n_wanted = next_chunk(n_wanted, n_most, is_staged=self._runner.is_staged)
        while not (n_tokens := self._sequences.make_room(sequence, n_wanted)):
            here = {id(other) for other, _ in picked}
            last = next((other for other in reversed(self._running) if id(other) not in here), generation)
            self._send_back(last)
            if last is generation:
                return 0
        stop = len(sequence.tokens) + n_tokens
        is_last = n_tokens == generation.n_pending
        is_kept = stop in (*sequence.marks, len(generation.request.prompt))
        is_each = generation.is_each_wanted
        wanted = generation.wanted if is_last or is_each else None
        rows = Rows(sequence, generation.pending(n_tokens), wanted, is_kept, is_each)
        picked.append((generation, rows))
        return n_tokens

    def _send_back(self, generation: Generation) -> None:
        assert generation.sequence is not None
        self._sequences.end(generation.sequence)
        generation.sequence = None
        self._running.remove(generation)
        with self._lock:
            self._waiting.appendleft(generation)

    def _stopped(self, batch: Batch) -> None:
        """A pass was stopped: by those who took part in it, or from outside, and then all end."""
        if not all(generation.is_cancelled for generation, _ in batch):
            for generation in self._running:
                generation.is_cancelled = True


@dataclass(frozen=True)
class _UnderWay:
    """A pass, and for whom it is; ``can_stop``: it can be ended early."""

    pass_id: int
    generations: tuple[Generation, ...]
    can_stop: bool

    @property
    def is_unwanted(self) -> bool:
        return self.can_stop and all(generation.is_cancelled for generation in self.generations)
