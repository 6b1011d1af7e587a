"""A folder of a model hub through the command line: two devices answer what they do with its GGUF twin."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from tests.cluster.commands import Home, find_key
from tests.hubfolders import write_folder
from tests.parity.hubtwins import RESULT
from tests.variants.made import add_entry
from tpi.gguf.types import F32
from tpi.hub.reader import read_model
from tpi.hub.vocabulary import vocabulary_entries
from tpi.weights.modelfiles import ModelFiles

GREEDY = ("In the beginning", "--raw", "--temperature", "0", "--max-tokens", "16", "--no-stats", "--local-devices", "2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    twin = json.loads(RESULT.read_text())["llama"]
    return write_folder(tmp_path / "Tiny", twin["config"], twin["sources"], n_files=3)


def _twin_of(folder: Path) -> Path:
    """The same as one GGUF file; ``tests.parity.test_hub_twins`` holds its tensors to the converter's."""
    model, path = read_model(folder), folder.with_suffix(".gguf")
    vocabulary = vocabulary_entries(folder, model.tensors["token_embd.weight"].n_rows, "llama")
    writer = gguf.GGUFWriter(str(path), "llama")
    entries: dict[str, Any] = {**model.metadata, **vocabulary}
    for name, value in entries.items():
        if name != "general.architecture":
            add_entry(writer, name, value)
    with ModelFiles(model) as files:
        for tensor in model.tensors.values():
            data = np.empty((tensor.n_rows, tensor.n_bytes // tensor.n_rows), np.uint8)
            files.read_rows(tensor, 0, data.data.cast("B"))
            if tensor.type is F32:
                writer.add_tensor(tensor.name, data.view(np.float32).reshape(-1))
            else:
                writer.add_tensor(tensor.name, data, raw_dtype=gguf.GGMLQuantizationType[tensor.type.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_it_answers_as_its_twin(home: Home, folder: Path) -> None:
    twin = _twin_of(folder)
    ours = home.run("run", str(folder), *GREEDY)
    theirs = home.run("run", str(twin), *GREEDY)
    assert (ours.code, theirs.code) == (0, 0), ours.err + theirs.err
    assert ours.out == theirs.out and len(ours.out) > 8
    assert "as the model suggests" in ours.err and "top k 20" in ours.err


def test_a_worker_cuts_from_its_own_copy(home: Home, away: Home, folder: Path) -> None:
    with home.start("serve", str(folder), "--workers", "1", "--port", "0", "--bind", "127.0.0.1") as master:
        key = find_key(master)
        with away.start("join", key, "--model", str(folder)) as worker:
            master.wait_for("ready")
            assert "cut" in worker.err()
            master.say("Hello")
            master.stdin.close()
            assert master.process.wait(30) == 0, master.err()
            assert worker.process.wait(30) == 0, worker.err()


def test_it_is_inspected(home: Home, folder: Path) -> None:
    shown = home.run("inspect", str(folder), "--json")
    facts = json.loads(shown.out)
    assert facts["kind"] == "folder of a model hub" and facts["architecture"] == "llama" and facts["name"] == "Tiny"
    assert home.run("inspect", str(folder), "--memory", "160MiB", "--ranks", "2").code == 0
