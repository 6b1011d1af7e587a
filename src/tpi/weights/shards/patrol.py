"""Compares a shard in use with its checksums, in the background and only while nobody needs the disk.

Owns one thread, and a descriptor of the shard: the file may be removed meanwhile. Finds what
``weights.shards.shard.verify`` finds; what is done about it is the owner's affair.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tpi.errors import Cancelled, ChecksumError, ModelFileError, TpiError
from tpi.weights.files import open_for_reading
from tpi.weights.shards.filelock import is_at
from tpi.weights.shards.shard import Shard, verify

_WAIT_S = 0.5


class Patrol:
    """One round over ``shard``, beginning at once, if the file is there. A context manager; ``close`` is idempotent."""

    def __init__(
        self, shard: Shard, is_idle: Callable[[], bool], on_damage: Callable[[TpiError], None], removes: bool = False
    ) -> None:
        """``is_idle`` is asked before every piece; ``on_damage`` gets the error. Both run in this thread.

        ``removes``: a damaged file goes, unless another has its name by now."""
        self._shard, self._is_idle, self._on_damage, self._removes = shard, is_idle, on_damage, removes
        self._stop = threading.Event()
        self.is_done = False
        """Whether the round has ended and everything is as it was written."""
        try:
            descriptor = open_for_reading(shard.path)
        except ModelFileError:  # who reads the weights says so
            descriptor = None
        self._thread = threading.Thread(target=self._run, args=(descriptor,), name="tpi-patrol", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ends the round and the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self, descriptor: int | None) -> None:
        if descriptor is None:
            return
        try:
            self._wait_for_quiet()
            verify(self._shard, lambda *_: self._wait_for_quiet(), descriptor)
            self.is_done = True
        except Cancelled:
            return
        except TpiError as error:
            self._on_damage(self._without_it(error, descriptor))
        finally:
            os.close(descriptor)

    def _without_it(self, error: TpiError, descriptor: int) -> TpiError:
        if not self._removes or not isinstance(error, ChecksumError):
            return error
        if is_at(descriptor, self._shard.path):
            with contextlib.suppress(OSError):
                self._shard.path.unlink(missing_ok=True)
        return ChecksumError(f"{error} (it was removed: start again to get it anew)")

    def _wait_for_quiet(self) -> None:
        while not self._is_idle() and not self._stop.wait(_WAIT_S):
            pass
        if self._stop.is_set():
            raise Cancelled("the check of the shard was ended")
