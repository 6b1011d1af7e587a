"""Headers of safetensors files: what is read, and what is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hubfolders import random_values, write_raw, write_safetensors
from tpi.errors import ModelFileError
from tpi.hub.safetensors import StoredTensor, read_header


def test_names_types_shapes_and_places(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a": ("BF16", (2, 3)), "b": ("F8_E4M3", (5,)), "c": ("F32", ())}
    write_safetensors(path, {n: (kind, random_values(n, kind, shape)) for n, (kind, shape) in tensors.items()})
    start = path.stat().st_size - 12 - 5 - 4
    assert read_header(path, 7) == {
        "a": StoredTensor("a", "BF16", (2, 3), 7, start),
        "b": StoredTensor("b", "F8_E4M3", (5,), 7, start + 12),
        "c": StoredTensor("c", "F32", (), 7, start + 17),
    }


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "no safetensors file or is truncated"),
        (b"[" * 100_000, "header"),
        (b'{"a": 1}', "header"),
        (b'{"a": \xff}', "header"),
        (json.dumps({"a": _entry(shape=[3])}), "12 bytes"),
        (json.dumps({"a": _entry(shape=[-2, -1])}), "shape"),
        (json.dumps({"a": _entry(shape=[1 << 62, 1 << 62])}), "shape"),
        (json.dumps({"a": _entry(shape=["2"])}), "header"),
        (json.dumps({"a": _entry(data_offsets=[8, 0])}), "said to lie"),
        (json.dumps({"a": _entry(data_offsets=[-8, 0])}), "said to lie"),
        (json.dumps({"a": _entry(data_offsets=[1 << 70, (1 << 70) + 8])}), "header|truncated"),
        (json.dumps({"a": _entry(data_offsets=[8, 16])}), "truncated"),
        (json.dumps({"a": _entry(), "b": _entry()}), "where another tensor"),
        (json.dumps({"a": _entry(dtype="F99", data_offsets=[4, 2])}), "said to lie"),
    ],
)
def test_hostile_headers_end_in_one_line(header: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_raw(path, header.encode() if isinstance(header, str) else header, bytes(8))
    with pytest.raises(ModelFileError, match=message) as caught:
        read_header(path, 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_lengths_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for data in (b"", b"\2\0", (1 << 63).to_bytes(8, "little") + b"{}", (3).to_bytes(8, "little") + b"{}"):
        path.write_bytes(data)
        with pytest.raises(ModelFileError, match="truncated"):
            read_header(path, 0)
