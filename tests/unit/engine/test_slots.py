"""Saved and restored texts: on ranks that keep only text, amid other answers; names, refusals, and saves that fail."""

from concurrent.futures import Future
from pathlib import Path
from random import Random
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from tests.models import write_random_model
from tests.unit.engine.ranks import NOTHING, FakeRanks, Stop, kinds
from tests.unit.engine.test_scheduler import alone, finish, request, scheduler_of, text
from tpi.cluster.control.messages import PrefixDone
from tpi.cluster.prefixes.orders import Action, PrefixOrder, decode_order, encode_order
from tpi.cluster.prefixes.prefixfile import write_prefix_file
from tpi.engine.generation import Generation, Request
from tpi.engine.language import Language
from tpi.engine.scheduler import Scheduler
from tpi.engine.slots import Slots
from tpi.errors import BusyError, ContextError, DiskSpaceError, LinkError, UsageError
from tpi.model.architectures import read_spec
from tpi.model.spec import ModelSpec
from tpi.runtime.passes import BLOCK_CELLS, Pass
from tpi.runtime.recurrent import StateMark


class KeepingRanks(FakeRanks):
    """They save what they keep in ``disk``. ``refuses``: one of them cannot do that, when others have done it and it
    has begun."""

    disk: dict[str, Any]
    refuses: tuple[Action, ...] = ()

    def keep(self, order: PrefixOrder) -> tuple[PrefixDone, ...]:
        order = decode_order(encode_order(order), self.n_cells, self.n_sequences)
        self._ledger.settle()
        self._copy(cast(Pass, order))  # an order has copies as a pass has
        self._ledger.copied()
        done = self._keep(order)
        if order.action not in self.refuses:
            return done
        if order.action is Action.RESTORE:
            self._spoil(order)
        return (PrefixDone(0, 1), PrefixDone(0, 0, "the disk is full"))

    def _spoil(self, order: PrefixOrder) -> None:
        """Its part of the place is zeros."""
        for cell in _cells_of(order)[order.n_present :]:
            self._cells[cell] = NOTHING
        self._rings[order.sequence] = {}
        for mark in order.marks if self._is_recurrent else ():
            self._states[self._slots.kept(order.sequence, mark.n_tokens)] = ()

    def _keep(self, order: PrefixOrder) -> tuple[PrefixDone, ...]:
        cells = _cells_of(order)
        if order.action is Action.SAVE:
            states = [self._states[self._slots.kept(order.sequence, mark.n_tokens)] for mark in order.marks]
            ring = dict(self._rings.get(order.sequence, {}))
            self.disk[order.save_id] = [self._cells[cell] for cell in cells], ring, states if self._is_recurrent else []
        elif order.action is Action.RESTORE:
            found, ring, states = self.disk[order.save_id]
            for position in range(order.n_present, order.n_tokens):
                self._cells[cells[position]] = found[position]
            self._rings[order.sequence] = dict(ring)
            if self._is_recurrent:
                for slot, state in zip(self._slots.place(order.sequence, order.marks), states, strict=True):
                    self._states[slot] = state
        elif order.action is Action.PRUNE:
            self.disk.pop(order.save_id, None)
        elif order.save_id not in self.disk:
            return (PrefixDone(0, 1), PrefixDone(0, 0, "cannot read it"))
        return (PrefixDone(0, 100), PrefixDone(0, 20))


def _cells_of(order: PrefixOrder) -> list[int]:
    blocks = [range(first, first + BLOCK_CELLS) for first in order.cells]
    return [cell for block in blocks for cell in block][: order.n_tokens]


class AtOnce:
    """A scheduler whose caller takes the step that it waits for."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def between(self, work: Any) -> Future[Any]:
        future = self._scheduler.between(work)
        self._scheduler.step()
        return future


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Language:
    return Language(write_random_model(Path(tmp_path_factory.mktemp("model")) / "model.gguf"))


@pytest.fixture(scope="module")
def spec(language: Language) -> ModelSpec:
    return read_spec(language.gguf, "")


def ranks_of(spec: ModelSpec, kind: str, disk: dict[str, Any], **more: Any) -> KeepingRanks:
    ranks = KeepingRanks(spec, **kinds()[kind], **{"n_cells": 320, "n_sequences": 3, **more})
    ranks.disk = disk
    return ranks


def slots_of(scheduler: Scheduler, ranks: KeepingRanks, folder: Path, digest: str = "digest") -> Slots:
    return Slots(cast(Scheduler, AtOnce(scheduler)), ranks, folder, digest, ranks.n_sequences)


def answer(scheduler: Scheduler, asked: Request) -> Generation:
    generation = scheduler.submit(asked)
    finish(scheduler)
    assert generation.tokens == alone(asked)
    return generation


@pytest.mark.parametrize("kind", kinds())
def test_another_session_goes_on_where_this_one_was(
    language: Language, spec: ModelSpec, tmp_path: Path, kind: str
) -> None:
    disk: dict[str, Any] = {}
    ranks = ranks_of(spec, kind, disk)
    scheduler = scheduler_of(ranks, language)
    slots = slots_of(scheduler, ranks, tmp_path)
    first = answer(scheduler, request(text(1, 75)))
    saved = slots.save(first.answer.slot, "one")
    assert saved.n_tokens == len(first.tokens) - 1, "the last was drawn, and not computed"
    assert saved.n_bytes == 120 + (tmp_path / "one").stat().st_size
    for parallel in (1, 3):
        ranks = ranks_of(spec, kind, disk, n_sequences=parallel)
        scheduler = scheduler_of(ranks, language, keeps_ended=parallel > 1)
        slots = slots_of(scheduler, ranks, tmp_path)
        restored = slots.restore(0, "one")
        assert (restored.n_tokens, restored.n_bytes) == (saved.n_tokens, saved.n_bytes)
        again = answer(scheduler, request([*first.tokens, 9, 8]))
        assert again.answer.n_cached_tokens == saved.n_tokens


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", kinds())
def test_amid_others_who_come_and_go(language: Language, spec: ModelSpec, tmp_path: Path, kind: str, seed: int) -> None:
    """Whatever is saved, restored and erased between: answers stay what they are alone."""
    dice, disk = Random(seed), dict[str, Any]()
    ranks = ranks_of(spec, kind, disk, n_cells=dice.randint(3, 8) * 32)
    scheduler = scheduler_of(ranks, language, keeps_ended=dice.random() < 0.7)
    slots, asked, done = slots_of(scheduler, ranks, tmp_path), list[tuple[Request, Generation]](), list[str]()
    if seed % 2:
        scheduler.pin(text(1, 40))

    def stop_some(work: Pass) -> Stop:
        where = dice.choice([*[None] * 30, "before", "in the middle", "after"])
        if where is not None:
            assert scheduler._under_way is not None
            for generation in scheduler._under_way.generations:
                scheduler.cancel(generation)
        return cast(Stop, where)

    ranks.before_pass = stop_some
    for _ in range(250):
        ranks.refuses = dice.choice([(), (), (), (Action.RESTORE,), (Action.SAVE,)])
        move = dice.choice(["submit", "go on", *["step"] * 14, "save", "save", "restore", "restore", "erase"])
        try:
            if move == "submit" or (move == "go on" and not asked):
                prompt = text(dice.randint(0, 3), dice.randint(1, 80), dice.choice([0, 32, 50]))
                new = request(prompt, dice.randint(1, 9), len(asked))
                asked.append((new, scheduler.submit(new)))
            elif move == "go on":
                new = request([*dice.choice(asked)[1].tokens, 5][:80], dice.randint(1, 9), len(asked))
                asked.append((new, scheduler.submit(new)))
            elif move == "save":
                slots.save(dice.randrange(3), dice.choice("ab"))
            elif move == "restore":
                slots.restore(dice.randrange(3), dice.choice("ab"))
            elif move == "erase":
                slots.erase(dice.randrange(3))
            else:
                scheduler.step()
            done.append(move)
        except (BusyError, UsageError, DiskSpaceError):
            done.append(f"no {move}")
    ranks.before_pass = lambda work: None
    finish(scheduler)
    assert {"save", "restore", "erase"} <= set(done), "some of each could be done"
    for wanted, generation in asked:
        if generation.answer.finish == "length":
            assert generation.tokens == alone(wanted)
    assert sum(generation.answer.finish == "length" for _, generation in asked) > 5
    assert len(disk) == sum((tmp_path / name).exists() for name in "ab"), "what does not count is not kept"


def test_a_slot_that_is_asked_for_is_had_if_it_is_free(language: Language, spec: ModelSpec) -> None:
    ranks = ranks_of(spec, "states", {})
    scheduler = scheduler_of(ranks, language)
    wanted = [request(text(number, 40)) for number in range(2)]
    for asked in wanted:
        object.__setattr__(asked.settings, "slot", 2)
    generations = [scheduler.submit(asked) for asked in wanted]
    finish(scheduler)
    assert generations[0].answer.slot == 2 != generations[1].answer.slot
    assert [generation.tokens for generation in generations] == [alone(asked) for asked in wanted]


def test_who_waits_learns_that_a_worker_is_gone(language: Language, spec: ModelSpec) -> None:
    scheduler = scheduler_of(ranks_of(spec, "cells", {}), language)

    def lose(_: Any) -> None:
        raise LinkError("w1 is gone")

    waiting = [scheduler.between(work) for work in (lambda _: 1, lose, lambda _: 2, lambda _: 3)]
    with pytest.raises(LinkError, match="w1 is gone"):
        scheduler.step()
    assert waiting[0].result(0) == 1
    for future in waiting[1:]:
        assert str(future.exception(0)) == "w1 is gone"


@pytest.mark.parametrize(
    "more",
    [
        {"save_id": "../../" + "0" * 26},
        {"marks": (StateMark(1, True),) * 70},
        {"marks": (StateMark(1, True), StateMark(2, True), StateMark(3, True), StateMark(4, True))},
        {"marks": (StateMark(41, True),)},
        {"marks": (StateMark(-1, True),)},
        {"n_written": -1},
        {"n_written": 1 << 40},
    ],
)
def test_what_no_save_has_is_refused(
    language: Language, spec: ModelSpec, tmp_path: Path, more: dict[str, object]
) -> None:
    """Nobody is asked to do it."""
    disk: dict[str, Any] = {}
    ranks = ranks_of(spec, "states", disk)
    told = {"save_id": "0" * 32, "model_digest": "digest", "n_written": 40, "marks": ()} | more
    tokens = np.arange(3, 43).astype("<u4").tobytes()
    write_prefix_file(tmp_path / "bad", msgspec.msgpack.encode(told), len(tokens), [tokens])
    slots = slots_of(scheduler_of(ranks, language), ranks, tmp_path)
    ranks.keep = lambda order: pytest.fail("asked")  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"bad is no saved text|states that none has here"):
        slots.restore(0, "bad")


def test_saves_are_so_many(language: Language, spec: ModelSpec, tmp_path: Path) -> None:
    disk: dict[str, Any] = {}
    ranks = ranks_of(spec, "cells", disk)
    scheduler = scheduler_of(ranks, language)
    slots = slots_of(scheduler, ranks, tmp_path)
    answer(scheduler, request(text(1, 40)))
    slots.save(0, "one")
    for number in range(1, 256):
        (tmp_path / f"other{number}").touch()
    with pytest.raises(UsageError, match="256 texts are saved, as many as may be: take one of their names"):
        slots.save(0, "two")
    slots.save(0, "one")
    assert len(disk) == 1


def test_what_cannot_be_saved_or_restored(language: Language, spec: ModelSpec, tmp_path: Path) -> None:
    disk: dict[str, Any] = {}
    ranks = ranks_of(spec, "cells", disk)
    scheduler = scheduler_of(ranks, language)
    slots = slots_of(scheduler, ranks, tmp_path)
    for name in ("../x", "a/b", "", ".x", "x.part-y", "x" * 101, "a\n", "ä"):
        with pytest.raises(UsageError, match="is no name for a saved slot"):
            slots.save(0, name)
    with pytest.raises(UsageError, match="there is no slot 3: there are 0 to 2"):
        slots.save(3, "one")
    with pytest.raises(UsageError, match="nothing is kept of slot 0"):
        slots.save(0, "one")
    first = answer(scheduler, request(text(1, 40)))
    slots.save(0, "one")
    ranks.refuses = (Action.SAVE,)
    with pytest.raises(DiskSpaceError, match="rank 1: the disk is full"):
        slots.save(0, "one")
    ranks.refuses = ()
    assert slots.restore(1, "one").n_tokens == len(first.tokens) - 1, "the save before is still good"
    assert len(disk) == 1, "and the other has left nothing"
    (tmp_path / "two").write_text("what somebody wrote")
    with pytest.raises(UsageError, match="two is there, and is no saved text: choose another name"):
        slots.save(0, "two")
    assert (tmp_path / "two").read_text() == "what somebody wrote" and len(disk) == 1
    with pytest.raises(UsageError, match="one was saved with another model"):
        slots_of(scheduler, ranks, tmp_path, "other").restore(0, "one")
    good = (tmp_path / "one").read_bytes()
    for damaged in (good[:-1], good[:30], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:], b"", b"GGUF" * 20):
        (tmp_path / "one").write_bytes(damaged)
        with pytest.raises(UsageError):
            slots.restore(0, "one")
    (tmp_path / "one").write_bytes(good)
    disk.clear()
    with pytest.raises(UsageError, match="rank 1: cannot read it"):
        slots.restore(0, "one")
    short = ranks_of(spec, "cells", disk, n_cells=32)
    with pytest.raises(ContextError, match="49 tokens, 24 more than the 25 that fit the context: serve with a longer"):
        slots_of(scheduler_of(short, language), short, tmp_path).restore(0, "one")
    generation = scheduler.submit(request(text(2, 40)))
    scheduler.step()
    with pytest.raises(BusyError, match="is being answered"):
        slots.erase(generation.answer.slot)
    assert generation.sequence is not None
    finish(scheduler)
    assert slots.erase(generation.answer.slot) == len(generation.tokens) - 1
    assert slots.erase(generation.answer.slot) == 0
    assert answer(scheduler, request(text(2, 41))).answer.n_cached_tokens == 0


@pytest.mark.parametrize("n_tokens", [20, 60])
@pytest.mark.parametrize("kind", kinds())
def test_of_what_is_erased_nothing_is_there_again(
    language: Language, spec: ModelSpec, tmp_path: Path, kind: str, n_tokens: int
) -> None:
    """However many answers the same prompt had in one slot; what another slot has stays."""
    ranks = ranks_of(spec, kind, {})
    scheduler = scheduler_of(ranks, language)
    slots, prompt = slots_of(scheduler, ranks, tmp_path), text(1, n_tokens)
    for seed in range(5):
        answer(scheduler, request(prompt, seed=seed))
    other = answer(scheduler, request(text(2, 60)))
    for slot in range(3):
        if slot != other.answer.slot:
            slots.erase(slot)
    assert answer(scheduler, request(prompt)).answer.n_cached_tokens == 0
    assert answer(scheduler, request([*other.tokens, 9])).answer.n_cached_tokens > 0
