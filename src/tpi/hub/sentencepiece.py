"""Reads ``tokenizer.model`` files: pieces of text with scores. Any thread.

A protobuf message. Its field 1, repeated, is a piece: text (1), score (2, f32), type (3, numbered as in GGUF files);
field 2 says in its field 3 of what kind the model is (2: BPE), field 3 in its field 3 whether texts begin with a space.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpi.errors import ModelFileError, UnsupportedModelError

_BPE = 2


@dataclass(frozen=True)
class Piece:
    """A token; ``type`` as in GGUF files."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class Pieces:
    """By their numbers; whether texts are read as if a space stood before them."""

    pieces: tuple[Piece, ...]
    begins_with_space: bool


def read_pieces(path: Path) -> Pieces:
    """The vocabulary in the file at ``path``.

    Raises:
        ModelFileError: it cannot be read, or is no such file.
        UnsupportedModelError: it is of another kind than BPE.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error
    pieces, kind, has_space = list[Piece](), 1, True
    try:
        for key, value in _fields(data):
            if key == 1:
                pieces.append(_piece(dict(_fields(value))))
            elif key == 2:
                kind = dict(_fields(value)).get(3, 1)
            elif key == 3:
                has_space = bool(dict(_fields(value)).get(3, 1))
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise ModelFileError(f"{path} is damaged ({error!r:.100}); fetch it again") from error
    if kind != _BPE:
        raise UnsupportedModelError(f"{path} has a tokenizer of kind {kind}; BPE ({_BPE}) alone can be used")
    return Pieces(tuple(pieces), has_space)


def _piece(parts: dict[int, Any]) -> Piece:
    return Piece(parts[1].decode(), struct.unpack("<f", parts.get(2, bytes(4)))[0], int(parts.get(3, 1)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a protobuf message's fields: integers, or bytes.

    Raises:
        ValueError: it is none.
    """
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        if key & 7 == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        n_bytes = {1: 8, 5: 4}.get(key & 7)
        if n_bytes is None:
            if key & 7 != 2:
                raise ValueError(f"a field of kind {key & 7}")
            n_bytes, place = _varint(data, place)
        if place + n_bytes > len(data):
            raise ValueError("it ends early")
        yield key >> 3, data[place : place + n_bytes]
        place += n_bytes


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("it ends early")
        value |= (data[place] & 127) << shift
        place += 1
        if data[place - 1] < 128:
            return value, place
    raise ValueError("a number is too long")
