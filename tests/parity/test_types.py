"""A part of the long table (``python -m tests.parity.types``): every type against llama.cpp, and cut among some ranks
against one; all of it for the types that kernels compute by ways of their own."""

from pathlib import Path

import pytest

from tests.parity.architectures import BOUND
from tests.parity.types import SHARES, against_llama_cpp, against_one_rank, is_rearranged, write_model
from tpi.gguf.types import TYPES_BY_NAME


@pytest.mark.parametrize("number, kind", list(enumerate(TYPES_BY_NAME)))
def test_logits_equal_llama_cpp_and_ranks_one(tmp_path: Path, number: int, kind: str) -> None:
    model = write_model(tmp_path, "dense", kind)
    assert against_llama_cpp(model.path) <= BOUND
    if is_rearranged(kind):
        assert against_llama_cpp(model.path, repack=True) <= BOUND
    cut = against_one_rank(model, [SHARES[number % len(SHARES)]])
    assert cut.is_sound, cut


@pytest.mark.parametrize("kind", ["MXFP4", "NVFP4", "TQ1_0", "Q1_0"])
def test_experts_equal_llama_cpp(tmp_path: Path, kind: str) -> None:
    assert against_llama_cpp(write_model(tmp_path, "experts", kind).path) <= BOUND
