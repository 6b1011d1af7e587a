"""Writes GGUF files of metadata alone, as libllama reads a vocabulary from. Any thread.

Little-endian: ``GGUF``, u32 version 3, u64 number of tensors (0), u64 number of entries; of each its key, u32 type,
value. Keys and strings are a u64 length and bytes, arrays the u32 type of their elements, a u64 length, and these.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError

Written: TypeAlias = str | bool | int | Sequence[bytes] | npt.NDArray[np.float32] | npt.NDArray[np.int32]
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def write_metadata(path: Path, entries: Mapping[str, Written]) -> None:
    """Writes the entries to ``path``: integers of 0 to 2^32 - 1, and arrays of strings, f32 or i32, among them.

    Raises:
        ModelFileError: the file cannot be written.
    """
    parts = [b"GGUF", struct.pack("<IQQ", 3, 0, len(entries))]
    for key, value in entries.items():
        parts += [_string(key.encode()), *_value(value)]
    try:
        with path.open("wb") as stream:
            stream.writelines(parts)
    except OSError as error:
        raise ModelFileError(f"cannot write {path}: {error.strerror}") from error


def _value(value: Written) -> list[bytes]:
    if isinstance(value, bool):
        return [struct.pack("<I?", _BOOL, value)]
    if isinstance(value, int):
        return [struct.pack("<II", _U32, value)]
    if isinstance(value, str):
        return [struct.pack("<I", _STRING), _string(value.encode("utf-8", "replace"))]
    if isinstance(value, np.ndarray):
        kind = _F32 if value.dtype == np.float32 else _I32
        return [struct.pack("<IIQ", _ARRAY, kind, len(value)), value.tobytes()]
    return [struct.pack("<IIQ", _ARRAY, _STRING, len(value)), *map(_string, value)]


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
