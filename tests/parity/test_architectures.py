"""A part of the long table (``make parity``): of every architecture, and of every form of its blocks, one against
llama.cpp, in one type or the other, and cut among some ranks against one."""

from pathlib import Path

import pytest

from tests.parity.architectures import SHARES, against_llama_cpp, against_one_rank
from tests.variants.all import VARIANTS

FIRST = {variant.split()[0]: variant for variant in reversed(list(VARIANTS))}
"""Of every architecture one."""
FORMS = ("104B", "MXFP4", "E2B", "26B-A4B", "unsplit", "V3", "Large-3", "olmo2 3 7B", "scaled", "122B-A10B")
CHOSEN = [variant for variant in VARIANTS if variant in FIRST.values() or variant.endswith(FORMS)]


@pytest.mark.parametrize("number, variant", list(enumerate(CHOSEN)))
def test_logits_equal_llama_cpp(tmp_path: Path, number: int, variant: str) -> None:
    kind = ("F16", "Q4_0")[number % 2]
    difference, bound = against_llama_cpp(tmp_path, variant, kind)
    assert difference <= bound, kind


@pytest.mark.parametrize("number, variant", list(enumerate(CHOSEN)))
def test_ranks_equal_one(tmp_path: Path, number: int, variant: str) -> None:
    [difference], bound = against_one_rank(tmp_path, variant, [SHARES[number % len(SHARES)]])
    assert difference <= bound, SHARES[number % len(SHARES)]
