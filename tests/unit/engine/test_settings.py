"""Settings refuse what cannot work, in one line that names the value and the limit."""

import math
from typing import Any

import pytest

from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.errors import UsageError


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", -0.1, ("temperature", "-0.1", "100")),
        ("temperature", math.nan, ("temperature", "nan")),
        ("temperature", math.inf, ("temperature", "inf")),
        ("temperature", True, ("temperature", "True")),
        ("temperature", "hot", ("temperature", "'hot'")),
        ("top_k", -1, ("top-k", "-1", "0")),
        ("top_k", 1.5, ("top-k", "1.5", "whole")),
        ("top_p", 1.01, ("top-p", "1.01", "0 to 1")),
        ("min_p", -0.5, ("min-p", "-0.5")),
        ("repetition_penalty", 0.0, ("repetition penalty", "0.01")),
        ("penalty_window_tokens", -1, ("window", "-1")),
        ("seed", -1, ("seed", "-1")),
        ("seed", 2**63, ("seed", str(2**63))),
    ],
)
def test_sampling_value_outside_its_limits(field: str, value: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingSettings(**{field: value})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [{"max_tokens": 0}, {"max_tokens": 2_000_000}, {"stop": ("",)}, {"stop": ("x" * 1025,)}, {"stop": ("x",) * 17}],
)
def test_generation_value_outside_its_limits(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        GenerationSettings(**arguments)


def test_limits_themselves_are_allowed() -> None:
    SamplingSettings(temperature=0, top_k=0, top_p=0, min_p=1, penalty_window_tokens=0, seed=0)
    SamplingSettings(temperature=100, top_p=1, min_p=0, seed=2**63 - 1)
    GenerationSettings(max_tokens=1, stop=("x" * 1024,) * 16, raw=True)
