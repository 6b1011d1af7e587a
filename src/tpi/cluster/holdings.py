"""What a worker has of weights, and where it gets those that a plan asks for. Keeps no thread; blocks its caller."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

from tpi.cluster.control.messages import HeldShard, Offer
from tpi.cluster.epoch.speeds import measure_speeds
from tpi.cluster.transfer.stock import Stock, make_shard, stock_of
from tpi.config import Resources, WorkerSettings
from tpi.errors import ModelFileError
from tpi.gguf.reader import read_gguf
from tpi.observe import available_memory_bytes
from tpi.runtime.workspace import RankModel
from tpi.weights.identity import model_digest
from tpi.weights.shards.shard import ByteProgress, Shard, open_shard
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource, SliceSource


class Holdings:
    """The shards on this device: the one that the user names, or those in the store. A context manager."""

    def __init__(self, settings: WorkerSettings) -> None:
        """
        Raises:
            ModelFileError: the shard that the user names cannot be opened.
        """
        self.store = ShardStore(settings.folders.shards / settings.name)
        self.given = open_shard(settings.shard) if settings.shard else None
        self._model, self._cache = settings.model, settings.folders.cache

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def offer(self, resources: Resources, cache: Path, hosts: tuple[str, ...], port: int) -> Offer:
        """With what this device can do, measured now; other workers can call it at ``hosts`` and ``port``."""
        shards = [self.given] if self.given else self.store.shards()
        held = [HeldShard(shard.header.spec.digest, shard.header.rank) for shard in shards[:64]]
        folder = self.given.path.parent if self.given else self.store.folder
        speeds = measure_speeds(shards[0].pieces if shards else (), resources, cache, folder)
        return Offer(
            memory_bytes=resources.memory_bytes or max(1, available_memory_bytes() // 2),
            held=held,
            hosts=hosts,
            port=port,
            locked=self.given.header.partition if self.given else None,
            window_bytes=resources.window_bytes,
            flop_per_s=speeds.flop_per_s,
            disk_bytes_per_s=speeds.disk_bytes_per_s,
        )

    def stock(
        self, model: RankModel, open_source: Callable[[], SliceSource], progress: Callable[[str], ByteProgress]
    ) -> Stock:
        """The shard that a plan asks for: the one given, one in the store, or a new one, cut from the model's own file
        if that is here, or else from ``open_source``.

        Raises:
            ModelFileError: what the user named is of another model.
            DiskSpaceError, LinkError, ChecksumError: see ``make_shard``.
        """
        given = self.given
        if given is not None:
            if given.header.spec.digest != model.spec.digest or given.pieces != model.pieces:
                raise ModelFileError(
                    f"{given.path} is not rank {model.rank}'s shard of the model that is served: cut it again with "
                    "`tpi shard` from the same file, with the same shares"
                )
            return stock_of(given, False)
        found = self.store.try_find(model.spec.digest, model.pieces)
        return stock_of(found or self._assemble(model, open_source, progress), True)

    def _assemble(
        self, model: RankModel, open_source: Callable[[], SliceSource], progress: Callable[[str], ByteProgress]
    ) -> Shard:
        if self._model is None:
            return make_shard(self.store, model, open_source(), progress("received"))
        gguf = read_gguf(self._model)
        if model_digest(gguf, self._cache, progress("reads its model")) != model.spec.digest:
            raise ModelFileError(f"{self._model} is not the model that the master serves")
        with GgufSource(gguf) as source:
            return make_shard(self.store, model, source, progress("cut"))
