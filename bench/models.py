"""Writes models of true shape with random weights: a whole GGUF, a hollow one, or one rank's shard.

    python -m bench models --shape llama-2-70b --quant q4_0 --rank 3/8 --out rank3.tpishard

Holds some tens of MB, writes as fast as the disk takes it. A hollow file has header, embeddings and vectors, and holes
elsewhere (weights of zero): enough for a master whose own rank need not compute anything sensible. A shard that was
written alone goes with a hollow GGUF on the master: it has that file's digest, unless another is given.
"""

import argparse
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np

from bench.report import Report
from bench.shapes import SHAPES, Shape, TensorShape, find_shape, tensors_of
from bench.vocabulary import add_tokenizer
from bench.weights import RandomWeights
from tpi.config import parse_shares
from tpi.errors import DiskSpaceError, UsageError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.weights.identity import model_digest
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard import Shard
from tpi.weights.shards.shard_format import ShardHeader

_EMBEDDING = "token_embd.weight"
_ALIGNMENT = 32


@dataclass(frozen=True)
class RandomModel:
    """What to write: a shape, the name of a quantisation, and the seed of its weights."""

    shape: Shape
    quantisation: str
    seed: int = 0

    @property
    def tensors(self) -> list[TensorShape]:
        return tensors_of(self.shape, self.quantisation)

    def weights(self) -> RandomWeights:
        return RandomWeights(self.shape, self.tensors, self.seed)


def write_gguf(model: RandomModel, path: Path, *, hollow: bool = False) -> Path:
    """Writes the model to ``path``; see the module for ``hollow``. Equal arguments give equal bytes.

    Raises:
        DiskSpaceError: there is too little room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not hollow:
        _require_room(path.parent, sum(tensor.n_bytes for tensor in model.tensors))
    weights = model.weights()
    _write_header(model, path)
    with path.open("r+b", buffering=0) as file:
        place = _aligned(file.seek(0, os.SEEK_END))
        for tensor in model.tensors:
            if not hollow or tensor.n_rows == 0 or tensor.name == _EMBEDDING:
                file.seek(place)
                for run in weights.runs(tensor):
                    _write_all(file, run)
            place = _aligned(place + tensor.n_bytes)
        file.truncate(place)
    return path


def write_rank(model: RandomModel, rank: int, shares: Sequence[float], path: Path, digest: str | None = None) -> Shard:
    """Writes the shard of ``rank`` when the model is divided by ``shares``, without writing the model. ``digest`` is
    that of the GGUF file that it goes with, None: of a hollow one.

    Raises:
        UsageError: there is no such rank.
        DiskSpaceError: there is too little room.
    """
    if not 0 <= rank < len(shares):
        raise UsageError(f"--rank {rank}/{len(shares)}: ranks go from 0 to {len(shares) - 1}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".hollow-") as folder:
        hollow = read_gguf(write_gguf(model, Path(folder) / "model.gguf", hollow=True))
        spec = read_spec(hollow, digest or model_digest(hollow))
    partition = divide(blocks_of(spec), shares)
    header = ShardHeader(spec, partition, rank)
    path.unlink(missing_ok=True)
    return write_shard(path, header, model.weights()).shard


def _write_header(model: RandomModel, path: Path) -> None:
    shape = model.shape
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(f"random {shape.name} {model.quantisation}")
    writer.add_context_length(shape.n_context)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.rms_eps)
    add_tokenizer(writer, shape)
    for tensor in model.tensors:
        extents = (tensor.n_rows, tensor.n_columns) if tensor.n_rows else (tensor.n_columns,)
        kind = gguf.GGMLQuantizationType(tensor.type.id)
        writer.add_tensor_info(tensor.name, extents, np.dtype(np.float32), tensor.n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _write_all(file: BinaryIO, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += file.write(data[done:])


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT


def _require_room(folder: Path, n_bytes: int) -> None:
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if free < n_bytes:
        raise DiskSpaceError(
            f"{folder} has room for {free / 1e9:.1f} GB, the model takes {n_bytes / 1e9:.1f} GB: write one --rank of it"
        )


def read_rank(text: str) -> tuple[int, int]:
    """Rank and number of ranks in ``3/8``.

    Raises:
        UsageError: anything else.
    """
    rank, slash, count = text.partition("/")
    if not (slash and rank.isdecimal() and count.isdecimal() and int(rank) < int(count)):
        raise UsageError(f"--rank {text!r}: write it as 3/8, from 0/8 to 7/8")
    return int(rank), int(count)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench models``."""
    parser = argparse.ArgumentParser(prog="bench models", description="Write a model of true shape.")
    parser.add_argument("--shape", required=True, help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0", help="q4_0, q8_0, q4_k, q4_k_m, bf16, f16, …")
    parser.add_argument("--rank", metavar="3/8", help="write only this rank's shard")
    parser.add_argument("--shares", metavar="N,N,…", help="with --rank: each rank's part (default: equal parts)")
    parser.add_argument("--hollow", action="store_true", help="only header, embeddings and vectors; holes elsewhere")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, metavar="PATH")
    given = parser.parse_args(arguments)
    model = RandomModel(find_shape(given.shape), given.quant, given.seed)
    report = Report("models").add(shape=model.shape.name, quantisation=model.quantisation)
    with report.timing("write_s"):
        if given.rank is None:
            write_gguf(model, given.out, hollow=given.hollow)
        else:
            rank, count = read_rank(given.rank)
            shares = parse_shares(given.shares) if given.shares else (1.0,) * count
            if len(shares) != count:
                raise UsageError(f"--shares has {len(shares)} numbers for {count} ranks")
            write_rank(model, rank, shares, given.out)
            report.add(rank=given.rank)
    stat = given.out.stat()
    yield report.add(file_bytes=stat.st_size, disk_bytes=stat.st_blocks * 512, path=str(given.out))
