"""Prompts that are read in passes of two parts, by real processes: every kind of model says what one device says."""

from pathlib import Path

import pytest

from tests.cluster.commands import Home
from tests.variants.all import SMALL
from tests.variants.made import write_made

PROMPT = " ".join(f"w{number % 50}" for number in range(101))
"""Of 385 tokens: the engine makes passes of 128, which are computed in two parts, from just so many."""
OPTIONS = ("--raw", "--temperature", "0", "--max-tokens", "4", "--threads", "1", "--no-stats", "--context", "512")


@pytest.mark.parametrize("name", ["gemma4, shared", "gemma4, experts", "olmo2", "deepseek2", "qwen35moe"])
def test_devices_say_what_one_says(tmp_path: Path, home: Home, name: str) -> None:
    path = str(write_made(tmp_path / "model.gguf", SMALL[name](), "F32"))
    alone = home.run("run", path, PROMPT, *OPTIONS)
    assert alone.code == 0 and alone.out.strip(), alone.err
    for options in (("--local-devices", "2"), ("--local-devices", "3", "--window", "1500kB")):
        ended = home.run("run", path, PROMPT, *OPTIONS, "--wire", "f32", *options)
        assert (ended.code, ended.out) == (0, alone.out), ended.err
