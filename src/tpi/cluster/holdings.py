"""What a worker has of weights, and where it gets those that a plan asks for. Keeps no thread; blocks its caller."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from tpi.cluster.control.messages import HeldShard, Offer
from tpi.cluster.epoch.speeds import measure_speeds
from tpi.cluster.transfer.stock import Stock, find_stock, stock_of
from tpi.config import Resources, WorkerSettings
from tpi.errors import ModelFileError
from tpi.hub.reader import read_model
from tpi.native.allocator import give_back_freed
from tpi.observe import available_memory_bytes, resident_bytes
from tpi.runtime.ggml.quantize import quantized
from tpi.runtime.rankmodel import RankModel
from tpi.weights.identity import model_digest
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.shard import ByteProgress, open_shard
from tpi.weights.shards.shard_source import ShardSource
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
        give_back_freed()
        return Offer(
            memory_bytes=resources.memory_bytes or max(1, available_memory_bytes() // 2),
            held=held,
            hosts=hosts,
            port=port,
            locked=self.given.header.partition if self.given else None,
            window_bytes=resources.window_bytes,
            flop_per_s=speeds.flop_per_s,
            disk_bytes_per_s=speeds.disk_bytes_per_s,
            process_bytes=resident_bytes(),
        )

    def stock(
        self,
        model: RankModel,
        repacker: RepackingKernels | None,
        open_source: Callable[[], SliceSource],
        progress: Callable[[str], ByteProgress],
    ) -> Stock:
        """What a plan asks for, in the repacker's order if there is one: the shard that the user names, one in the
        store, or a new one, made from the one named, cut from the model's own file if that is here, or else from
        ``open_source``.

        Raises:
            ModelFileError: what the user named is of another model.
            DiskSpaceError, LinkError, ChecksumError: see ``make_shard``.
        """
        given = self.given
        if given is None:
            return find_stock(self.store, model, repacker, *self._source(model, open_source, progress))
        if given.header.spec.digest != model.spec.digest or given.pieces != model.pieces:
            raise ModelFileError(
                f"{given.path} is not rank {model.rank}'s shard of the model that is served: cut it again with "
                "`tpi shard` from the same file, with the same shares"
            )
        if given.header.repacking == (repacker.name if repacker is not None else ""):
            return stock_of(given, False)
        return find_stock(self.store, model, repacker, lambda: ShardSource(given), progress("rearranged"))

    def _source(
        self, model: RankModel, open_source: Callable[[], SliceSource], progress: Callable[[str], ByteProgress]
    ) -> tuple[Callable[[], AbstractContextManager[SliceSource]], ByteProgress]:
        """What opens the primary source of a new shard, and who is told how far it is."""
        if self._model is None:
            return lambda: nullcontext(open_source()), progress("received")
        path = self._model

        def open_model() -> GgufSource:
            gguf = quantized(read_model(path), model.spec.quant)
            if model_digest(gguf, self._cache, progress("reads its model")) != model.spec.digest:
                raise ModelFileError(f"{path} is not the model that the master serves")
            return GgufSource(gguf)

        return open_model, progress("cut")
