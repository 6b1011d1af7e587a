"""What is quantised of every architecture, and that it can still be computed and cut."""

from pathlib import Path

import pytest

from tests.variants.all import SMALL
from tests.variants.made import write_made
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide, is_whole
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.layout import lay_out


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K"])
def test_every_architecture_can_be_quantised(tmp_path: Path, name: str, quant: str) -> None:
    gguf = read_gguf(write_made(tmp_path / "model.gguf", SMALL[name]()))
    model = quantized(gguf, quant)
    spec = read_spec(model, "")
    changed = {tensor for tensor in model.tensors if model.tensors[tensor].type != gguf.tensors[tensor].type}
    assert not any(word in tensor for tensor in changed for word in ("norm", "ffn_gate_inp.", "bias", "conv1d"))
    assert any("attn_" in tensor or "ssm_in" in tensor for tensor in changed)
    assert any("ffn" in tensor for tensor in changed) == any("ffn" in tensor for tensor in gguf.tensors)
    blocks = blocks_of(spec)
    partition = divide(blocks, (2, 1, 1))
    assert is_whole(blocks, partition) and spec.quant == quant
    for rank in range(3):
        lay_out(blocks, partition, rank)
