"""The headers of safetensors files: names, types, shapes and places of tensors. Reads no data. Any thread.

A file is, little-endian: 8 bytes with the header's length, the header as JSON, then the data. The header has an object
for each name, ``{"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}``, offsets counted from the data's begin,
and perhaps ``__metadata__`` with strings.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tpi.errors import ModelFileError

_MAX_HEADER_BYTES = 100_000_000
_MAX_TENSORS = 1 << 20
_MAX_EXTENTS = 8
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1} | {
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True)
class StoredTensor:
    """``shape`` values of ``dtype`` (a name of the format), the last axis contiguous, from byte ``offset`` of the file
    that is number ``file`` of a model's."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    offset: int

    @property
    def n_columns(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return math.prod(self.shape[:-1])


class _Entry(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def value_bytes(dtype: str) -> int | None:
    """Bytes of a value; None if the type is none that is known."""
    return _BYTES.get(dtype)


def read_header(path: Path, file: int) -> dict[str, StoredTensor]:
    """The tensors of the safetensors file at ``path``, number ``file`` of its model's.

    Raises:
        ModelFileError: it cannot be read, or is no such file, damaged or truncated.
    """
    try:
        with path.open("rb") as stream:
            size, start = os.fstat(stream.fileno()).st_size, stream.read(8)
            n_bytes = int.from_bytes(start, "little")
            if len(start) < 8 or not 2 <= n_bytes <= min(size - 8, _MAX_HEADER_BYTES):
                raise ModelFileError(
                    f"{path} is no safetensors file or is truncated: its header would have {n_bytes:,} bytes, the file "
                    f"has {size:,}; fetch it again"
                )
            header = stream.read(n_bytes)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    try:
        found = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        found.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(entry, type=_Entry) for name, entry in found.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: its header is not that of safetensors ({error})") from error
    if len(entries) > _MAX_TENSORS:
        raise ModelFileError(f"{path} is damaged: it claims {len(entries):,} tensors, the limit is {_MAX_TENSORS:,}")
    data = 8 + n_bytes
    tensors = {name: _tensor(path, name, entry, file, data, size) for name, entry in entries.items()}
    _check_apart(path, entries)
    return tensors


def _tensor(path: Path, name: str, entry: _Entry, file: int, data: int, size: int) -> StoredTensor:
    start, stop = entry.data_offsets
    if len(entry.shape) > _MAX_EXTENTS or not all(0 <= extent < 1 << 40 for extent in entry.shape):
        raise ModelFileError(f"{path} is damaged: {name!r:.80} has the shape {entry.shape!s:.80}")
    width = _BYTES.get(entry.dtype)
    wanted = stop - start if width is None else width * math.prod(entry.shape)
    if not 0 <= start <= stop or stop - start != wanted:
        raise ModelFileError(
            f"{path} is damaged: {name!r:.80} of {wanted:,} bytes is said to lie at bytes {start:,} to {stop:,}"
        )
    if data + stop > size:
        raise ModelFileError(
            f"{path} is truncated: {name!r:.80} ends at byte {data + stop:,} but the file has {size:,}; fetch it again"
        )
    return StoredTensor(name, entry.dtype, tuple(entry.shape), file, data + start)


def _check_apart(path: Path, entries: dict[str, _Entry]) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        if entry.data_offsets[0] < end:
            raise ModelFileError(f"{path} is damaged: {name!r:.80} lies where another tensor does")
        end = entry.data_offsets[1]
