"""Work for callers in threads of its own: its place comes back with the thread, whatever the caller does."""

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from tpi.api.workers import Going, Holders, Workers
from tpi.errors import BusyError, Cancelled

WAIT_S = 10.0


class Held:
    """Work that goes on when it is told to."""

    def __init__(self) -> None:
        self._begun, self._may_go_on = threading.Event(), threading.Event()

    def __call__(self, _: Going) -> int:
        self._begun.set()
        assert self._may_go_on.wait(WAIT_S)
        return 7

    async def wait_begun(self) -> None:
        assert await asyncio.to_thread(self._begun.wait, WAIT_S)

    def go_on(self) -> None:
        self._may_go_on.set()


def run(work: Coroutine[Any, Any, None], workers: Workers) -> None:
    try:
        asyncio.run(asyncio.wait_for(work, WAIT_S))
    finally:
        workers.close()


async def hang_up(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_place_and_what_is_held_come_back_when_the_thread_ends_not_when_the_caller_goes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    workers, held, freed, ended = Workers(1, max_work=1), Held(), threading.Event(), list[str]()

    def work(going: Going) -> None:
        held(going)
        try:
            going.check()
        except Cancelled:
            ended.append("cancelled")
            raise

    async def ask() -> None:
        holders = Holders(freed.set)
        task = asyncio.create_task(workers.run(work))
        await held.wait_begun()
        await hang_up(task)
        holders.leave()
        assert not freed.is_set()
        with pytest.raises(BusyError):
            await workers.run(lambda _: 1)
        held.go_on()
        assert await asyncio.to_thread(freed.wait, WAIT_S)
        assert ended == ["cancelled"] and await workers.run(lambda _: 2) == 2

    caplog.clear()
    run(ask(), workers)
    gc.collect()
    assert not caplog.records, "nobody waits for what was cancelled"


def test_what_was_begun_for_a_caller_who_has_gone_is_undone() -> None:
    workers, held, undone, given = Workers(1), Held(), threading.Event(), list[int]()

    def undo(number: int) -> None:
        given.append(number)
        undone.set()

    async def ask() -> None:
        task = asyncio.create_task(workers.run(held, undo))
        await held.wait_begun()
        await hang_up(task)
        held.go_on()
        assert await asyncio.to_thread(undone.wait, WAIT_S) and given == [7]
        assert await workers.run(lambda _: 3, undo) == 3 and given == [7]

    run(ask(), workers)


def test_what_fails_is_told_and_what_waits_for_nobody_is_not_begun() -> None:
    workers, held, done = Workers(1), Held(), list[int]()

    def fail(_: Going) -> None:
        raise ValueError("words")

    async def ask() -> None:
        with pytest.raises(ValueError, match="words"):
            await workers.run(fail)
        first = asyncio.create_task(workers.run(held))
        await held.wait_begun()
        second = asyncio.create_task(workers.run(lambda _: done.append(1)))
        await asyncio.sleep(0)
        await hang_up(second)
        held.go_on()
        assert await first == 7 and await workers.run(lambda _: 3) == 3 and not done

    run(ask(), workers)
