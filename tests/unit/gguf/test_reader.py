"""The GGUF reader: what it reads, and that damaged files give an error of ours and never end the process."""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import write_random_model
from tests.unit.gguf import crafted
from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import read_gguf
from tpi.gguf.strings import read_strings

_MEMORY_BYTES = 3 << 30
_CHILD = """
import resource, sys
from pathlib import Path
from tpi.errors import TpiError
from tpi.gguf.reader import read_gguf
from tpi.gguf.strings import read_strings
from tpi.model.architectures import blocks_of, read_spec

for path in map(Path, sys.argv[1:]):
    said = "read"
    try:
        read_strings(path, ["tokenizer.ggml.tokens", "general.alignment", "a"])
        gguf = read_gguf(path)
        blocks_of(read_spec(gguf, "digest"))
    except TpiError as error:
        said = str(error)
    print(path.name, said, sep="\\t", flush=True)
"""


def _read_in_child(paths: list[Path]) -> dict[str, str]:
    """What a process of its own says of each file: ``read``, or the error."""
    ended = subprocess.run(
        [sys.executable, "-c", _CHILD, *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GGML_NO_BACKTRACE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES)),
    )
    said = dict(line.split("\t", 1) for line in ended.stdout.splitlines())
    assert ended.returncode == 0, f"{paths[min(len(said), len(paths) - 1)]}: {ended.returncode} {ended.stderr}"
    assert ended.stderr == "", "the kernels' log is not for users"
    assert len(said) == len(paths)
    return said


def test_a_file_made_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "right.gguf"
    path.write_bytes(crafted.RIGHT)
    gguf = read_gguf(path)
    assert gguf.metadata == {"general.architecture": "llama", "a": (0, 0)}
    assert gguf.array_lengths == {"a": 2}
    start = len(crafted.RIGHT) - 4096
    assert [(tensor.name, tensor.type.name, tensor.n_columns, tensor.n_rows) for tensor in gguf.tensors.values()] == [
        ("one", "F32", 32, 2),
        ("two", "Q4_0", 32, 2),
    ]
    assert [tensor.offset for tensor in gguf.tensors.values()] == [start, start + 256]
    assert gguf.tensors["two"].n_bytes == 36


@pytest.mark.parametrize("split", [None, 1, 3])
def test_split_files_are_one_model(tmp_path: Path, split: int | None) -> None:
    whole = read_gguf(write_random_model(tmp_path / "model.gguf"))
    parts = read_gguf(write_random_model(tmp_path / "parts.gguf", split=split))
    assert len(parts.paths) == (split or 1)
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, tensor in parts.tensors.items():
        other = whole.tensors[name]
        with parts.paths[tensor.file].open("rb") as one, whole.paths[0].open("rb") as two:
            one.seek(tensor.offset)
            two.seek(other.offset)
            assert one.read(tensor.n_bytes) == two.read(other.n_bytes), name


def test_any_part_of_a_split_file_opens_the_model(tmp_path: Path) -> None:
    first = write_random_model(tmp_path / "model.gguf", split=3)
    last = first.with_name(first.name.replace("00001-of", "00003-of"))
    assert read_gguf(last) == read_gguf(first)


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first = write_random_model(tmp_path / "model.gguf", split=3)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(ModelFileError, match="stands in two of the split files"):
        read_gguf(first)
    second.unlink()
    with pytest.raises(ModelFileError, match=r"00002-of-00003\.gguf is missing"):
        read_gguf(first)
    second.write_bytes(content)
    renamed = first.rename(tmp_path / "renamed.gguf")
    with pytest.raises(ModelFileError, match="is not named NAME-00001-of-00003"):
        read_gguf(renamed)


def test_a_part_of_another_count(tmp_path: Path) -> None:
    first = write_random_model(tmp_path / "model.gguf", split=2)
    fewer = write_random_model(tmp_path / "fewer.gguf", split=2, n_layers=1)
    second = first.with_name(first.name.replace("00001-of", "00002-of"))
    second.write_bytes(fewer.with_name(fewer.name.replace("00001-of", "00002-of")).read_bytes())
    with pytest.raises(ModelFileError, match=r"hold \d+ tensors instead of|two of the split files"):
        read_gguf(first)


def test_strings_of_a_vocabulary(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf")
    found = read_strings(path, ["tokenizer.ggml.tokens", "general.architecture", "nowhere", "tokenizer.ggml.scores"])
    assert found.keys() == {"tokenizer.ggml.tokens", "general.architecture"}
    assert found["general.architecture"] == [b"llama"]
    assert len(found["tokenizer.ggml.tokens"]) == 320


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file"):
        read_gguf(tmp_path / "missing.gguf")
    with pytest.raises(ModelFileError, match="directory"):
        read_gguf(tmp_path)


def test_a_type_that_is_not_multiplied(tmp_path: Path) -> None:
    path = tmp_path / "i32.gguf"
    path.write_bytes(crafted.file([], [crafted.tensor("a", [32], 26)]))
    with pytest.raises(UnsupportedModelError, match="data type 26"):
        read_gguf(path)


def test_crafted_files_are_refused_in_one_line(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in crafted.WRONG]
    for path in paths:
        path.write_bytes(crafted.WRONG[path.name])
    for name, said in _read_in_child(paths).items():
        assert said != "read", name
        assert name in said, said


def test_files_cut_anywhere_are_refused(tmp_path: Path) -> None:
    whole = write_random_model(tmp_path / "model.gguf", n_layers=1).read_bytes()
    header = whole.index(b"blk.0.ffn_down.weight") + 100
    lengths = {*range(64), *range(64, header, 97), header, len(whole) // 2, len(whole) - 1}
    paths = [tmp_path / f"{length}.gguf" for length in sorted(lengths)]
    for path in paths:
        path.write_bytes(whole[: int(path.stem)])
    assert "read" not in _read_in_child(paths).values()


def test_garbage_never_ends_the_process(tmp_path: Path) -> None:
    """Bytes of headers changed at random: read or refused, nothing else. The data stay away, reads stop at the spec."""
    chance = random.Random(7)
    whole = write_random_model(tmp_path / "model.gguf", n_layers=1, types="Q4_0").read_bytes()
    header = whole.index(b"blk.0.ffn_down.weight") + 100
    places = [*range(8, 40), *(chance.randrange(header) for _ in range(200))]
    paths = []
    for number, place in enumerate(places):
        changed = bytearray(whole)
        for at in (place, *(chance.randrange(header) for _ in range(chance.choice((0, 0, 0, 5))))):
            changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(changed)
    said = _read_in_child(paths)
    assert any(text != "read" for text in said.values())
