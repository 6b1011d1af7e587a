"""News from the thread of steps reaches the loop, all of it, also where a loop has ended."""

import asyncio
import threading

from tpi.api.waking import Waker


def test_every_event_is_set() -> None:
    async def wait_for_all() -> None:
        waker, loop = Waker(), asyncio.get_running_loop()
        events = [asyncio.Event() for _ in range(500)]

        def wake(some: list[asyncio.Event]) -> None:
            for event in some:
                waker.wake(loop, event)

        threads = [threading.Thread(target=wake, args=(events[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in events)), 10)
        for thread in threads:
            thread.join()
        waker.close()

    asyncio.run(wait_for_all())


def test_a_loop_that_has_ended_holds_nobody_up() -> None:
    waker, ended = Waker(), asyncio.new_event_loop()
    ended.close()
    waker.wake(ended, asyncio.Event())

    async def wait() -> None:
        news = asyncio.Event()
        waker.wake(asyncio.get_running_loop(), news)
        await asyncio.wait_for(news.wait(), 10)

    asyncio.run(wait())
    waker.close()
    waker.close()
