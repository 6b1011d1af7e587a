"""How tokens are drawn: what is given, else what the model suggests, else what is usual."""

import io
import struct
from pathlib import Path

import pytest

from tests.unit.gguf.crafted import F32, LLAMA, U32, file, pair
from tpi.cli.answers import read_sampling
from tpi.cli.display import PlainDisplay
from tpi.engine.settings import SamplingSettings
from tpi.errors import UsageError


def crafted(folder: Path, *pairs: bytes) -> Path:
    path = folder / "m.gguf"
    path.write_bytes(file([LLAMA, *pairs]))
    return path


def test_what_is_given_wins_over_the_model_and_that_over_the_usual(tmp_path: Path) -> None:
    temperature = pair("general.sampling.temp", F32, struct.pack("<f", 0.6))
    top_k = pair("general.sampling.top_k", U32, struct.pack("<I", 20))
    said = io.StringIO()
    model = crafted(tmp_path, temperature, top_k)
    settings = read_sampling(model, PlainDisplay(said), temperature=0.0, top_k=None, top_p=0.5, seed=3)
    assert settings == SamplingSettings(temperature=0.0, top_k=20, top_p=0.5, seed=3)
    assert said.getvalue() == "tokens are drawn as the model suggests: top k 20\n"
    with pytest.raises(UsageError, match="temperature is 200"):
        read_sampling(model, PlainDisplay(said), temperature=200.0)


def test_a_model_that_suggests_nothing(tmp_path: Path) -> None:
    said = io.StringIO()
    assert read_sampling(crafted(tmp_path), PlainDisplay(said), top_k=None) == SamplingSettings()
    assert said.getvalue() == ""
