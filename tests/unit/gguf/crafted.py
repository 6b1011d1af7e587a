"""GGUF files made byte by byte, right and wrong ones."""

import struct
from collections.abc import Sequence

U8, U32, F32, BOOL, STRING, ARRAY, I64 = 0, 4, 6, 7, 8, 9, 11
ALIGNMENT = 32


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(key: str, kind: int, length: int, content: bytes = b"") -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, length) + content)


def tensor(name: str, extents: Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<q", extent) for extent in extents)
    return text(name) + struct.pack("<I", len(extents)) + sizes + struct.pack("<IQ", kind, offset)


def file(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = bytes(4096),
    *,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    version: int = 3,
) -> bytes:
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_pairs = len(pairs) if n_pairs is None else n_pairs
    header = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % ALIGNMENT) + data


LLAMA = pair("general.architecture", STRING, text("llama"))
RIGHT = file([LLAMA, array("a", U32, 2, bytes(8))], [tensor("one", [32, 2]), tensor("two", [32, 2], 2, 256)])

WRONG = {
    "empty": b"",
    "magic only": b"GGUF",
    "another magic": b"GGML" + bytes(100),
    "version 1": file(version=1),
    "version of other byte order": file(version=3 << 24),
    "pairs beyond the file": file(n_pairs=1 << 19),
    "tensors beyond the file": file(n_tensors=1 << 19),
    "pairs beyond reason": file(n_pairs=1 << 60),
    "tensors beyond reason": file(n_tensors=(1 << 64) - 1),
    "alignment is a text": file([pair("general.alignment", STRING, text("x"))]),
    "alignment is an array": file([array("general.alignment", U32, 2, bytes(8))]),
    "alignment 0": file([pair("general.alignment", U32, bytes(4))], [tensor("a", [32])]),
    "alignment 3": file([pair("general.alignment", U32, struct.pack("<I", 3))], [tensor("a", [32])]),
    "alignment beyond the file": file(
        [pair("general.alignment", U32, struct.pack("<I", 1 << 31))], [tensor("a", [32])]
    ),
    "negative extent": file([], [tensor("a", [-32, 4])]),
    "extents that overflow": file([], [tensor("a", [1 << 40, 1 << 40])]),
    "bytes that overflow": file([], [tensor("a", [1 << 62])]),
    "five extents": file([], [tensor("a", [1] * 5)]),
    "a type that was removed": file([], [tensor("a", [32], 4)]),
    "no such type": file([], [tensor("a", [32], 99)]),
    "half a quantisation block": file([], [tensor("a", [33], 2)]),
    "offset with a gap": file([], [tensor("a", [32], 0, 64)]),
    "offset beyond everything": file([], [tensor("a", [32], 0, 1 << 63)]),
    "a long name": file([], [tensor("a" * 100, [32])]),
    "a name twice": file([], [tensor("a", [32]), tensor("a", [32], 0, 128)]),
    "a key twice": file([LLAMA, LLAMA]),
    "no such kind": file([pair("a", 77, b"")]),
    "an array of arrays": file([array("a", ARRAY, 1)]),
    "an array of no such kind": file([array("a", 77, 1)]),
    "an array beyond the file": file([array("a", U32, 1 << 40)]),
    "an array beyond memory": file([array("a", U32, 1 << 62)]),
    "texts beyond the file": file([array("a", STRING, 1 << 30)]),
    "a text beyond the file": file([pair("a", STRING, struct.pack("<Q", 1 << 33))]),
    "a text beyond everything": file([pair("a", STRING, struct.pack("<Q", (1 << 64) - 1))]),
    "a key beyond the file": file([struct.pack("<Q", 1 << 40)]),
    "no data": file([LLAMA], [tensor("a", [32, 2])], data=b""),
}
