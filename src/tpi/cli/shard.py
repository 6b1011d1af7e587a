"""``tpi shard``: cuts a model into every rank's shard beforehand, for devices that get theirs on a stick."""

import contextlib
import shutil
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from tpi.cli import options
from tpi.cli.display import Display, open_display
from tpi.cli.environment import find_folders
from tpi.cli.figures import part, size
from tpi.cli.models import find_digest, find_model
from tpi.config import MAX_RANKS
from tpi.errors import DiskSpaceError, UsageError
from tpi.gguf.reader import Gguf
from tpi.hub.reader import read_model
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.layout import Piece, lay_out
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.slices import GgufSource


def command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A GGUF file, a model hub's folder, or `demo`.")],
    ranks: Annotated[int, typer.Option(min=1, max=MAX_RANKS, help="For so many devices, the master included.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the shards; made if it is missing.")],
    shares: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Each device's part, the master's first. [default: equal]")
    ] = None,
    quant: options.Quant = None,
) -> None:
    """Cut MODEL into one shard per device.

    Prints the files' names. A device uses its own with `tpi join KEY --shard FILE`; the master cuts its own.
    Interrupted, the same command goes on where it stopped.
    """
    weights = options.read_shares(shares, ranks) or (1.0,) * ranks
    path = find_model(model)
    gguf = quantized(read_model(path), quant)
    spec = read_spec(gguf, digest="")
    blocks = blocks_of(spec)
    partition = divide(blocks, weights)
    layouts = [lay_out(blocks, partition, rank) for rank in range(ranks)]
    _make_folder(out)
    targets = [out / f"{path.stem}-rank{rank}-of-{ranks}.tpishard" for rank in range(ranks)]
    _check_space(out, layouts, targets)
    display = open_display()
    spec = msgspec.structs.replace(spec, digest=find_digest(gguf, find_folders().cache, display))
    try:
        for rank, target in enumerate(targets):
            _write(gguf, ShardHeader(spec, partition, rank), target, display)
    finally:
        display.settle()
    total = sum(_n_bytes(pieces) for pieces in layouts)
    for rank, (target, pieces) in enumerate(zip(targets, layouts, strict=True)):
        n_bytes = _n_bytes(pieces)
        display.note(f"rank {rank}: {size(n_bytes)}, {part(n_bytes / total if total else 0)}")
        print(target)


def _write(gguf: Gguf, header: ShardHeader, target: Path, display: Display) -> None:
    with GgufSource(gguf) as source:
        write_shard(target, header, source, (), lambda done, total: display.progress(target.name, done, total))


def _n_bytes(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.n_bytes for piece in pieces)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder --out {folder}: {error.strerror}") from error


def _check_space(folder: Path, layouts: list[tuple[Piece, ...]], targets: list[Path]) -> None:
    """All shards must fit, less what an interrupted attempt has written: better told now than after an hour."""
    needed = sum(map(_n_bytes, layouts))
    for target in targets:
        for present in (target, target.with_name(target.name + ".part")):
            with contextlib.suppress(OSError):
                needed -= present.stat().st_size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DiskSpaceError(
            f"the shards need {size(needed)} but the disk of {folder} has {size(free)} free: free some, or choose "
            "another --out"
        )
