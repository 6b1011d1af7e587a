"""What a folder must have, and how it says what is missing; and that equal folders have equal identities."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.hubfolders import write_folder
from tpi.cli.models import model_name
from tpi.errors import ModelFileError, TpiError, UnsupportedModelError
from tpi.hub.reader import path_of, read_model
from tpi.weights.identity import model_digest

N_EMBD, N_FF, N_VOCAB = 64, 96, 272
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": N_VOCAB,
    "hidden_size": N_EMBD,
    "intermediate_size": N_FF,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}


def _sources(matrix: str = "BF16") -> dict[str, tuple[str, list[int]]]:
    layer = "model.layers.0."
    matrices = {
        "self_attn.q_proj": [N_EMBD, N_EMBD],
        "self_attn.k_proj": [N_EMBD // 2, N_EMBD],
        "self_attn.v_proj": [N_EMBD // 2, N_EMBD],
        "self_attn.o_proj": [N_EMBD, N_EMBD],
        "mlp.gate_proj": [N_FF, N_EMBD],
        "mlp.up_proj": [N_FF, N_EMBD],
        "mlp.down_proj": [N_EMBD, N_FF],
    }
    return {
        "model.embed_tokens.weight": ("BF16", [N_VOCAB, N_EMBD]),
        "model.norm.weight": ("BF16", [N_EMBD]),
        f"{layer}input_layernorm.weight": ("BF16", [N_EMBD]),
        f"{layer}post_attention_layernorm.weight": ("BF16", [N_EMBD]),
        **{f"{layer}{name}.weight": (matrix, shape) for name, shape in matrices.items()},
    }


def _write(place: Path, n_files: int = 1, **changes: Any) -> Path:
    return write_folder(place / "Tiny-1.5B", {**CONFIG, **changes}, _sources(), n_files)


def test_a_folder_is_a_model_with_its_name_and_suggestions(tmp_path: Path) -> None:
    path = _write(tmp_path, 3)
    gguf = read_model(path)
    assert path_of(gguf) == path and gguf.metadata["general.name"] == "Tiny-1.5B"
    assert gguf.metadata["general.sampling.top_k"] == 20 and "m.role" in str(gguf.metadata["tokenizer.chat_template"])
    assert gguf.array_lengths == {"tokenizer.ggml.tokens": N_VOCAB}
    plain = gguf.tensors["blk.0.ffn_up.weight"]
    assert plain.recipe is None and plain.file > 0 and gguf.tensors["blk.0.attn_q.weight"].recipe is not None


def test_a_folder_in_a_clients_cache_has_the_models_name(tmp_path: Path) -> None:
    for place in ("blobs", "snapshots/models--a--b", "models--org--Tiny-1B/snapshots/0f1e2d"):
        (tmp_path / place).mkdir(parents=True)
    assert model_name(tmp_path / "models--org--Tiny-1B" / "snapshots" / "0f1e2d") == "Tiny-1B"
    assert model_name(tmp_path / "snapshots" / "models--a--b") == "models--a--b"
    assert model_name(tmp_path / "snapshots") == "snapshots"


def test_copies_have_the_same_digest_and_other_configs_or_values_have_not(tmp_path: Path) -> None:
    path = _write(tmp_path)
    digest = model_digest(read_model(path))
    shutil.copytree(path, tmp_path / "copy")
    assert model_digest(read_model(tmp_path / "copy")) == digest
    (path / "config.json").write_text(json.dumps({**CONFIG, "rms_norm_eps": 1e-6}))
    assert model_digest(read_model(path)) != digest
    with (tmp_path / "copy" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x77")
    assert model_digest(read_model(tmp_path / "copy")) != digest


def _remove(name: str) -> Callable[[Path], None]:
    return lambda path: (path / name).unlink()


def _put(name: str, text: str) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        (path / name).write_text(text)

    return put


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_remove("model-00002-of-00003.safetensors"), "model-00002-of-00003.safetensors is missing"),
        (_remove("model.safetensors.index.json"), "no model.safetensors"),
        (_put("model.safetensors.index.json", '{"weight_map": {"a": "../../etc/passwd"}}'), "does not tell"),
        (_put("model.safetensors.index.json", '{"weight_map": {"a": 3}}'), "does not tell"),
        (_put("config.json", "{"), "no JSON"),
        (_put("config.json", "[" * 200_000), "no JSON"),
        (_put("config.json", "[]"), "no JSON object"),
        (_put("config.json", json.dumps({**CONFIG, "num_hidden_layers": 1 << 30})), "num_hidden_layers"),
        (_put("config.json", json.dumps({**CONFIG, "num_attention_heads": 0})), "num_attention_heads"),
        (_put("config.json", json.dumps({**CONFIG, "num_attention_heads": 3})), "do not fit"),
        (_put("config.json", json.dumps({**CONFIG, "hidden_size": "64"})), "hidden_size"),
        (_put("config.json", json.dumps({**CONFIG, "num_hidden_layers": 2})), "no tensor model.layers.1"),
        (_put("generation_config.json", '{"top_k": "many"}'), "top_k"),
    ],
)
def test_what_is_missing_or_damaged_is_said_in_one_line(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    path = _write(tmp_path, 3)
    spoil(path)
    with pytest.raises(ModelFileError, match=message) as caught:
        read_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["WhisperForConditionalGeneration"]}, "WhisperForConditionalGeneration.*those that can"),
        ({"architectures": None}, "no class"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq.*fetch the model in BF16"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, "pack-quantized"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_read_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(TpiError, match=message) as caught:
        read_model(_write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_other_tensors_are_not_left_out_in_silence(tmp_path: Path) -> None:
    path = write_folder(tmp_path, CONFIG, {**_sources(), "model.layers.0.extra.weight": ("BF16", [2, 2])})
    with pytest.raises(UnsupportedModelError, match=r"1 tensors are not of a plain llama model, e\.g\. model\.layers"):
        read_model(path)


@pytest.mark.parametrize("dtype", ["I8", "F4"])
def test_types_that_cannot_be_used_are_named(dtype: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path, CONFIG, _sources())
    data = (path / "model.safetensors").read_bytes()
    n_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n_bytes])
    entry = header["model.layers.0.mlp.up_proj.weight"]
    entry["dtype"] = dtype
    entry["shape"] = [entry["shape"][0] * 2, entry["shape"][1]]
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n_bytes :])
    with pytest.raises(UnsupportedModelError, match=f"mlp.up_proj.weight has type {dtype}"):
        read_model(path)
