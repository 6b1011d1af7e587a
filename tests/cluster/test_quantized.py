"""A model that is quantised as its slices are cut, by the command line: it answers what its quantised copy does."""

import ctypes
import json
from pathlib import Path

import llama_cpp
import pytest

from tests.cluster.commands import Home, find_key
from tests.models import write_random_model
from tpi.weights.shards.shard import open_shard

GREEDY = ("abc", "--raw", "--temperature", "0", "--max-tokens", "12", "--no-stats", "--local-devices", "2")
Q4_0 = 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_random_model(tmp_path / "model.gguf", n_heads=8, n_kv_heads=4, types="BF16", ends=False)


def _copy_of(model: Path) -> Path:
    params, copy = llama_cpp.llama_model_quantize_default_params(), model.with_name("copy.gguf")
    params.ftype = Q4_0
    assert llama_cpp.llama_model_quantize(str(model).encode(), str(copy).encode(), ctypes.byref(params)) == 0
    return copy


def test_it_answers_as_its_quantised_copy(home: Home, model: Path) -> None:
    ours = home.run("run", str(model), "--quant", "q4_0", *GREEDY)
    theirs = home.run("run", str(_copy_of(model)), *GREEDY)
    assert (ours.code, theirs.code) == (0, 0), ours.err + theirs.err
    assert ours.out == theirs.out and len(ours.out) > 8
    refused = home.run("run", str(model), "--quant", "Q3", *GREEDY)
    assert refused.code and "Q4_0, Q5_0, Q8_0" in refused.err and "Traceback" not in refused.err


def test_a_worker_quantises_what_it_cuts_from_its_own_copy(home: Home, away: Home, model: Path) -> None:
    options = "--quant", "Q8_0", "--workers", "1", "--port", "0", "--bind", "127.0.0.1", "--no-api"
    with home.start("serve", str(model), *options) as master:
        key = find_key(master)
        with away.start("join", key, "--model", str(model)) as worker:
            master.wait_for("ready")
            assert "cut" in worker.err()
            master.stdin.close()
            assert master.process.wait(30) == 0, master.err()
            assert worker.process.wait(30) == 0, worker.err()


def test_it_is_cut_and_inspected_beforehand(home: Home, model: Path, tmp_path: Path) -> None:
    made = home.run("shard", str(model), "--ranks", "2", "--quant", "Q4_0", "--out", str(tmp_path / "ours"))
    copied = home.run("shard", str(_copy_of(model)), "--ranks", "2", "--out", str(tmp_path / "theirs"))
    assert (made.code, copied.code) == (0, 0), made.err + copied.err
    for name in made.out.split():
        ours = open_shard(Path(name))
        theirs = open_shard(tmp_path / "theirs" / Path(name).name.replace("model", "copy"))
        assert ours.pieces == theirs.pieces and ours.header.spec.quant == "Q4_0"
        for piece in ours.pieces:
            found = [
                shard.path.read_bytes()[shard.file_offset(piece.index) :][: piece.n_bytes] for shard in (ours, theirs)
            ]
            assert found[0] == found[1], piece.index
        facts = json.loads(home.run("inspect", name, "--json", "--verify").out)
        assert facts["quantised to"] == "Q4_0" and set(facts["types"]) == {"F32", "Q4_0", "Q6_K"}
    facts = json.loads(home.run("inspect", str(model), "--quant", "Q4_0", "--json").out)
    assert facts["quantised to"] == "Q4_0" and set(facts["types"]) == {"F32", "Q4_0", "Q6_K"}
    plans = [
        json.loads(home.run("inspect", str(model), "--memory", "300MiB", "--json", *options).out)
        for options in ((), ("--quant", "Q4_0"))
    ]
    assert plans[1]["weights_bytes"] < plans[0]["weights_bytes"] / 2
