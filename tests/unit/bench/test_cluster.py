"""What measured clusters are asked, and one of two small devices."""

import json
from pathlib import Path

import pytest

from bench.cluster import ClusterFolder, Conditions, make_prompt, measure
from bench.models import RandomModel, write_gguf
from bench.shapes import Shape
from bench.testbed.testbed import Device, can_emulate
from tpi.cli.environment import find_folders
from tpi.engine.vocabulary import Vocabulary

SHAPES = (
    Shape("sentencepiece", 2, 512, 8, 4, 768, 3000, 512),
    Shape("pairs", 1, 256, 4, 2, 512, 3000, 512, vocabulary="gpt2"),
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_prompts_have_as_many_tokens_as_asked_for(tmp_path: Path, shape: Shape) -> None:
    path = write_gguf(RandomModel(shape, "q4_0"), tmp_path / "model.gguf", hollow=True)
    with Vocabulary(path) as vocabulary:
        n_tokens = len(vocabulary.tokenize(make_prompt(40, 1), add_special=True, parse_special=False))
    assert 40 <= n_tokens <= 41  # byte pairs have no space before the first word


@pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))
def test_two_devices_answer(tmp_path: Path) -> None:
    model = RandomModel(SHAPES[0], "q4_0")
    path = write_gguf(model, tmp_path / "model.gguf")
    conditions = Conditions(Device(), 0.001, 300e6, 1, 20, 8)
    report = measure(model, path, 2, conditions, ClusterFolder(tmp_path / "cluster", find_folders().cache.parent))
    figures = json.loads(report.json())
    assert (figures["prompt_tokens"], figures["tokens"]) == (20, 8)
    assert figures["decode_tokens_per_s"] > 0 and figures["prefill_tokens_per_s"] > 0
    assert len(figures["peak_rss_bytes"]) == 2 and all(30e6 < peak < 300e6 for peak in figures["peak_rss_bytes"])
    # Four sums of 512 values in 16 bits each way, the best of half the logits, and headers.
    assert 4 * 2 * 1024 + 1000 < figures["decode_wire_bytes_per_token"] < 40_000


@pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))
def test_a_master_with_stand_ins_answers_from_a_hollow_model(tmp_path: Path) -> None:
    model = RandomModel(SHAPES[0], "q4_0")
    path = write_gguf(model, tmp_path / "model.gguf", hollow=True)
    conditions = Conditions(Device(), 0.001, 300e6, 1, 20, 8, window="1MB", repack=False, stand_ins=True)
    figures = json.loads(measure(model, path, 3, conditions, ClusterFolder(tmp_path, find_folders().cache)).json())
    assert (figures["prompt_tokens"], figures["tokens"]) == (20, 8)
    assert len(figures["peak_rss_bytes"]) == 1 and len(figures["cpu_s"]) == 3
    assert list(tmp_path.glob("*/**/*.tpishard"))
