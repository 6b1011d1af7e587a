"""``tpi inspect --memory``: the plan of any rank, and the least that would do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models import write_random_model
from tpi.cli.main import main

PARTS = ("process", "tokenizer", "growth", "kv_cache", "graphs", "activations", "links", "logits", "arena", "pins")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return write_random_model(folder / "small.gguf", n_layers=4, n_ff=4096, types="Q8_0")


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("TPI_HOME", str(tmp_path / "home"))

    def show(*arguments: object, code: int = 0) -> tuple[dict[str, Any], str]:
        assert main(["inspect", *map(str, arguments), "--json"]) == code
        out, err = capsys.readouterr()
        return json.loads(out), err

    return show


def test_the_parts_make_the_total_and_the_limit_is_used(model: Path, show: Any) -> None:
    facts, _ = show(model, "--memory", "1GiB", "--ranks", "2", "--rank", "1", "--context", "512", "--threads", "1")
    assert sum(facts[f"{part}_bytes"] for part in PARTS) == facts["total_bytes"] <= facts["limit_bytes"] == 1 << 30
    assert (facts["rank"], facts["ranks"], facts["cells"], facts["chunk_tokens"]) == (1, 2, 512, 128)
    assert facts["tokenizer_bytes"] == 0 < facts["links_bytes"]
    assert facts["pinned_pieces"] == facts["pieces"] and facts["streamed_bytes"] == 0
    assert 0 < facts["head_bytes"] == facts["head_pinned_bytes"]
    tight, _ = show(model, "--memory", facts["minimum_bytes"] + 2_000_000, "--ranks", "2", "--rank", "1")
    assert tight["total_bytes"] == tight["limit_bytes"] and tight["streamed_bytes"] > 0


def test_too_little_is_refused_with_the_least_that_would_do(model: Path, show: Any) -> None:
    facts, error = show(model, "--memory", "20MB", code=1)
    assert "19.1MiB of memory is too little" in error and error.count("\n") == 1
    assert facts["refused"] in error and facts["minimum_bytes"] > 20_000_000
    enough, _ = show(model, "--memory", facts["minimum_bytes"] + 4_000_000)
    assert enough["total_bytes"] <= enough["limit_bytes"]


def test_a_context_of_what_memory_allows(tmp_path: Path, show: Any) -> None:
    path = write_random_model(tmp_path / "long.gguf", n_heads=16, n_kv_heads=16, context=1 << 17)
    least, _ = show(path, "--memory", "1GiB", "--context", "512")
    limit = least["minimum_bytes"] + 20_000_000
    facts, _ = show(path, "--memory", limit, "--context", "auto")
    assert 1024 < facts["cells"] < 4096 and facts["total_bytes"] <= limit
    more, _ = show(path, "--memory", limit, "--context", "auto", "--kv-type", "Q8_0")
    assert 1.3 * facts["cells"] < more["cells"]


def test_a_shard_knows_its_rank(model: Path, show: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shard", str(model), "--ranks", "2", "--out", str(tmp_path)]) == 0
    shards = capsys.readouterr().out.splitlines()
    facts, _ = show(shards[1], "--memory", "1GiB", "--kv-type", "q8_0")
    assert (facts["rank"], facts["ranks"], facts["kv_type"]) == (1, 2, "Q8_0")
    assert main(["inspect", shards[1], "--memory", "1GiB", "--rank", "0"]) == 2
    assert "a shard is of one rank" in capsys.readouterr().err


def test_the_table(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--memory", "1GiB", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("memory of rank 0 of 1, whose weights are ")
    assert [line.split("  ")[1].strip() for line in lines[1:]] == [
        *(part.replace("_", " ") for part in PARTS),
        "total",
        "limit",
        "minimum",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rank", "0"], "need --memory"),
        (["--memory", "1GiB", "--ranks", "2", "--rank", "2"], "--rank 2: 2 ranks go from 0 to 1"),
        (["--memory", "1GiB", "--ranks", "2", "--shares", "1,1,1"], "3 numbers for 2 devices"),
        (["--memory", "1GiB", "--context", "5000"], "was trained for"),
        (["--memory", "1GiB", "--kv-type", "Q2_K"], "a KV cache of type Q2_K"),
        (["--memory", "much"], "not a size"),
    ],
)
def test_wrong_questions(model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    assert main(["inspect", str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
