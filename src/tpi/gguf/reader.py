"""Reads metadata and tensor directory of GGUF files, split files included, through ggml's own C functions.

Owns the C context only while it reads: the result holds no pointers. Reads no tensor data. Any thread.
"""

import ctypes
import functools
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.types import TYPES_BY_ID, TensorType
from tpi.native.libraries import load_ggml

MetadataValue = int | float | bool | str | tuple[int, ...] | tuple[float, ...]

_MAGIC = b"GGUF"
_MAX_COUNT = 1 << 20
_MAX_ARRAY = 1 << 16
_SPLIT_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, tuple[str, Any]] = {
    0: ("u8", ctypes.c_uint8),
    1: ("i8", ctypes.c_int8),
    2: ("u16", ctypes.c_uint16),
    3: ("i16", ctypes.c_int16),
    4: ("u32", ctypes.c_uint32),
    5: ("i32", ctypes.c_int32),
    6: ("f32", ctypes.c_float),
    7: ("bool", ctypes.c_bool),
    10: ("u64", ctypes.c_uint64),
    11: ("i64", ctypes.c_int64),
    12: ("f64", ctypes.c_double),
}


ReadBytes: TypeAlias = Callable[[int, int, memoryview], None]
"""Fills memory with the bytes of the model's file of a number, from an offset on; blocks, raises ModelFileError."""


class Recipe(Protocol):
    """How the rows of a tensor are made of what lies in the model's files."""

    def make(self, read: ReadBytes, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Rows ``start`` to ``stop`` as the tensor's type has them, uint8 [rows, bytes], the caller's; takes a few
        times their memory.

        Raises:
            ModelFileError: a file cannot be read.
        """
        ...


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: ``n_columns`` (ne[0], contiguous) by ``n_rows``, ``offset`` bytes into file ``file``; or the
    ``recipe`` by which it is made, and no place."""

    name: str
    type: TensorType
    n_columns: int
    n_rows: int
    file: int = 0
    offset: int = 0
    recipe: Recipe | None = None

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.type.row_bytes(self.n_columns)


@dataclass(frozen=True)
class Gguf:
    """A model file, a set of split files read as one, or other files as the GGUF file that they would make.

    ``metadata`` holds scalars, strings and numeric arrays of up to 65,536 values; ``array_lengths`` has the length of
    every array. ``header_digest`` is the sha256 (hex) over everything before the tensor data of all files, and over all
    that decides how tensors are made. ``quant``: what matrices are quantised to as they are read, if they are.
    """

    paths: tuple[Path, ...]
    metadata: dict[str, MetadataValue]
    array_lengths: dict[str, int]
    tensors: dict[str, GgufTensor]
    header_digest: str
    quant: str = ""


def read_gguf(path: Path) -> Gguf:
    """Reads the file at ``path``; for one part of a split file, all parts beside it.

    Raises:
        ModelFileError: missing, not GGUF, damaged, truncated, or a part of a split file is missing.
        UnsupportedModelError: a tensor has a data type that the kernels do not multiply.
    """
    first = _read_single(path, 0)
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return first
    name = _SPLIT_NAME.match(path.name)
    if name is None or int(name["count"]) != count:
        raise ModelFileError(f"{path} is one of {count} split files but is not named NAME-00001-of-{count:05}.gguf")
    paths = [path.with_name(f"{name['stem']}-{i + 1:05}-of-{count:05}.gguf") for i in range(count)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelFileError(f"{path.name} is split in {count} files and {missing[0]} is missing beside it")
    return _join([_read_single(part, index) for index, part in enumerate(paths)])


def _join(parts: list[Gguf]) -> Gguf:
    tensors: dict[str, GgufTensor] = {}
    for part in parts:
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise ModelFileError(f"tensor {min(twice)} stands in two of the split files beside {parts[0].paths[0]}")
        tensors.update(part.tensors)
    expected = parts[0].metadata.get("split.tensors.count")
    if isinstance(expected, int) and expected != len(tensors):
        raise ModelFileError(f"{parts[0].paths[0]}: split files hold {len(tensors)} tensors instead of {expected}")
    digest = hashlib.sha256("".join(part.header_digest for part in parts).encode()).hexdigest()
    paths = tuple(path for part in parts for path in part.paths)
    return Gguf(paths, parts[0].metadata, parts[0].array_lengths, tensors, digest)


@functools.cache
def _functions() -> ctypes.CDLL:
    """libggml-base with the types of the gguf_* functions declared."""
    lib = load_ggml().base
    pointer, index, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    lib.gguf_init_from_file.argtypes = [text, _InitParams]
    lib.gguf_init_from_file.restype = pointer
    lib.gguf_free.argtypes = [pointer]
    lib.gguf_free.restype = None
    signatures: dict[str, object] = {
        "gguf_get_key": text,
        "gguf_get_kv_type": ctypes.c_int,
        "gguf_get_arr_type": ctypes.c_int,
        "gguf_get_arr_n": ctypes.c_size_t,
        "gguf_get_arr_data": pointer,
        "gguf_get_val_str": text,
        "gguf_get_tensor_name": text,
        "gguf_get_tensor_type": ctypes.c_int,
        "gguf_get_tensor_offset": ctypes.c_size_t,
        "gguf_get_tensor_ne": ctypes.POINTER(ctypes.c_int64),
    }
    signatures |= {f"gguf_get_val_{name}": kind for name, kind in _SCALARS.values()}
    for function, restype in signatures.items():
        getattr(lib, function).argtypes = [pointer, index]
        getattr(lib, function).restype = restype
    for function in ("gguf_get_n_kv", "gguf_get_n_tensors"):
        getattr(lib, function).argtypes = [pointer]
        getattr(lib, function).restype = index
    lib.gguf_get_data_offset.argtypes = [pointer]
    lib.gguf_get_data_offset.restype = ctypes.c_size_t
    return lib


class _InitParams(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _read_single(path: Path, file: int) -> Gguf:
    size = _check_start(path)
    lib = _functions()
    context = lib.gguf_init_from_file(os.fsencode(path), _InitParams(no_alloc=True, ctx=None))
    if not context:
        raise ModelFileError(f"{path} is damaged or truncated: its GGUF header cannot be read; fetch it again")
    try:
        metadata: dict[str, MetadataValue] = {}
        lengths: dict[str, int] = {}
        for index in range(lib.gguf_get_n_kv(context)):
            _read_pair(lib, context, index, metadata, lengths)
        data_offset = lib.gguf_get_data_offset(context)
        tensors = {}
        for index in range(lib.gguf_get_n_tensors(context)):
            tensor = _read_tensor(lib, context, index, data_offset, file, path)
            if tensor.offset + tensor.n_bytes > size:
                raise ModelFileError(
                    f"{path} is truncated: {tensor.name} ends at byte {tensor.offset + tensor.n_bytes:,} "
                    f"but the file has {size:,}; fetch it again"
                )
            tensors[tensor.name] = tensor
    finally:
        lib.gguf_free(context)
    return Gguf((path,), metadata, lengths, tensors, _digest(path, data_offset))


def _digest(path: Path, n_bytes: int) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.sha256(stream.read(n_bytes)).hexdigest()
    except OSError as error:
        raise ModelFileError(f"cannot read the model {path}: {error.strerror}") from error


def _check_start(path: Path) -> int:
    """Refuses what ggml's reader should not even see; returns the file's size."""
    try:
        with path.open("rb") as stream:
            start = stream.read(24)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ModelFileError(f"cannot read the model {path}: {error.strerror}") from error
    if start[:4] != _MAGIC:
        raise ModelFileError(f"{path} is not a GGUF file: it starts with {start[:4]!r} instead of {_MAGIC!r}")
    if len(start) < 24:
        raise ModelFileError(f"{path} is truncated: {size} bytes are less than a GGUF header; fetch it again")
    version = int.from_bytes(start[4:8], "little")
    if version not in (2, 3):
        raise ModelFileError(f"{path} is a GGUF file of version {version}; versions 2 and 3 can be read")
    counts = int.from_bytes(start[8:16], "little"), int.from_bytes(start[16:24], "little")
    if max(counts) > _MAX_COUNT:
        raise ModelFileError(f"{path} is damaged: it claims {max(counts):,} entries, the limit is {_MAX_COUNT:,}")
    return size


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _read_pair(
    lib: ctypes.CDLL,
    context: int,
    index: int,
    metadata: dict[str, MetadataValue],
    lengths: dict[str, int],
) -> None:
    key = _text(lib.gguf_get_key(context, index))
    kind = lib.gguf_get_kv_type(context, index)
    if kind == _STRING:
        metadata[key] = _text(lib.gguf_get_val_str(context, index))
    elif kind in _SCALARS:
        metadata[key] = getattr(lib, f"gguf_get_val_{_SCALARS[kind][0]}")(context, index)
    elif kind == _ARRAY:
        lengths[key] = length = lib.gguf_get_arr_n(context, index)
        element = _SCALARS.get(lib.gguf_get_arr_type(context, index))
        if element is not None and length <= _MAX_ARRAY:
            data = lib.gguf_get_arr_data(context, index)
            metadata[key] = tuple((element[1] * length).from_address(data)) if length else ()


def _read_tensor(lib: ctypes.CDLL, context: int, index: int, data_offset: int, file: int, path: Path) -> GgufTensor:
    name = _text(lib.gguf_get_tensor_name(context, index))
    type_id = lib.gguf_get_tensor_type(context, index)
    if type_id not in TYPES_BY_ID:
        raise UnsupportedModelError(f"{path}: tensor {name} has data type {type_id}, which the kernels do not multiply")
    extents = lib.gguf_get_tensor_ne(context, index)
    return GgufTensor(
        name=name,
        type=TYPES_BY_ID[type_id],
        n_columns=extents[0],
        n_rows=extents[1] * extents[2] * extents[3],
        file=file,
        offset=data_offset + lib.gguf_get_tensor_offset(context, index),
    )
