"""What this device can do, measured: how fast it computes and how fast its disk reads. Keeps no state."""

from collections.abc import Sequence
from pathlib import Path

from tpi.config import Resources
from tpi.native.allocator import give_back_freed
from tpi.planner.chunks import Speeds
from tpi.runtime.ggml.speed import main_type, try_flop_per_s
from tpi.weights.layout import Piece
from tpi.weights.streaming.readways import noted_rate


def measure_speeds(pieces: Sequence[Piece], resources: Resources, cache: Path, shards: Path) -> Speeds:
    """Computes for a moment as with weights of the type that ``pieces`` have; the disk's rate is what is noted in the
    folder ``shards``."""
    flop_per_s = try_flop_per_s(main_type(pieces), resources.n_threads, resources.repack, cache)
    give_back_freed()
    return Speeds(flop_per_s, noted_rate(shards))
