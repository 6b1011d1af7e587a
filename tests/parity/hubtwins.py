"""Makes ``hubtwins.json``: what llama.cpp's converter and transformers make of small folders of every family.

    python -m tests.parity.hubtwins CONVERTER [--only NAME]

runs where ``transformers`` and PyTorch are installed (``make hub-twins`` sets that up); CONVERTER is the folder with
``convert_hf_to_gguf.py``. A family's own classes say, by ``save_pretrained``, which tensors a folder has; their values
are random and follow from names (``tests.hubfolders``), so that they need not be kept. Of the GGUF file that the
converter makes of it entries, types, sizes and checksums are kept; of transformers the logits after a few tokens.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.hubfolders import write_folder

RESULT = Path(__file__).with_suffix(".json")
TOKENS = [72, 101, 108, 108, 111, 44, 220, 99]
_CONVERT = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base, conversion.gemma, conversion.phi
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
conversion.gemma.Gemma4Model.set_vocab = conversion.phi.Phi3MiniModel.set_vocab = lambda self: None
sys.argv = [sys.argv[1] + "/convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The converter knows tokenizers by checksums, and wants some families' own; this one is none of them."""


def variants() -> dict[str, Any]:
    """A config of transformers for each, and what is changed in what it saves."""
    import transformers as t  # noqa: PLC0415

    base: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 286,
        "eos_token_id": 287,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    llama_3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    experts: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 4, "moe_intermediate_size": 64}
    nets: dict[str, Any] = {
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 6,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
    }
    gpt_oss = {**base, "intermediate_size": 64, "num_local_experts": 8, "num_experts_per_tok": 4, "sliding_window": 32}
    gemma: dict[str, Any] = {**base, "head_dim": 32, "sliding_window": 32, "num_hidden_layers": 6}
    gemma |= {"tie_word_embeddings": True, "vocab_size": 265}  # the converter leaves out what has no token
    gemma_4: dict[str, Any] = {**gemma, "global_head_dim": 64, "hidden_size_per_layer_input": 0}
    gemma_4["final_logit_softcapping"] = 30.0
    factors = {f"{name}_factor": [first + 0.25 * i for i in range(16)] for name, first in (("short", 1), ("long", 2))}
    long: dict[str, Any] = {"max_position_embeddings": 1024, "original_max_position_embeddings": 512}
    long["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 10000.0, **factors}
    gemma_4_small: dict[str, Any] = {
        "hidden_size_per_layer_input": 32,
        "vocab_size_per_layer_input": 265,
        "num_kv_shared_layers": 3,
    }
    gemma_4_small |= {"use_double_wide_mlp": True, "layer_types": 2 * [*2 * ["sliding_attention"], "full_attention"]}
    experts_of_gemma_4: dict[str, Any] = {
        "enable_moe_block": True,
        "num_experts": 8,
        "top_k_experts": 8,
        "moe_intermediate_size": 64,
    }
    experts_of_gemma_4 |= {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
    return {
        "llama": (t.LlamaConfig(**base, rope_parameters=llama_3), None),
        "llama-tied": (t.LlamaConfig(**{**base, "tie_word_embeddings": True}), None),
        "llama-f8-blocks": (t.LlamaConfig(**base), _f8_blocks),
        "llama-f8-rows": (t.LlamaConfig(**base), _f8_rows),
        "mistral": (t.MistralConfig(**base, head_dim=48, sliding_window=None), None),
        "mistral-f8-matrices": (t.MistralConfig(**base, sliding_window=None), _f8_matrices),
        "qwen2": (t.Qwen2Config(**base), None),
        "qwen3": (t.Qwen3Config(**base, head_dim=48), None),
        "qwen3moe": (t.Qwen3MoeConfig(**base, **experts, head_dim=32, norm_topk_prob=True), None),
        "qwen3moe-f8-blocks": (t.Qwen3MoeConfig(**base, **experts, head_dim=32, norm_topk_prob=True), _f8_blocks),
        "gpt-oss": (t.GptOssConfig(**gpt_oss, head_dim=32), None),
        "gpt-oss-mxfp4": (t.GptOssConfig(**gpt_oss, head_dim=32), _mxfp4),
        "qwen35": (t.Qwen3_5TextConfig(**{**base, **nets}, head_dim=64), None),
        "qwen35moe": (
            t.Qwen3_5MoeTextConfig(**{**base, **nets}, **experts, head_dim=64, shared_expert_intermediate_size=64),
            None,
        ),
        "qwen35moe-fused": (
            t.Qwen3_5MoeTextConfig(**{**base, **nets}, **experts, head_dim=64, shared_expert_intermediate_size=64),
            _fused,
        ),
        "gemma3": (t.Gemma3TextConfig(**gemma, query_pre_attn_scalar=32), None),
        "gemma4": (t.Gemma4TextConfig(**gemma_4, num_kv_shared_layers=0), None),
        "gemma4-small": (t.Gemma4TextConfig(**{**gemma_4, **gemma_4_small}), None),
        "gemma4-experts": (t.Gemma4TextConfig(**gemma_4, **experts_of_gemma_4), None),
        "phi3": (t.Phi3Config(**{**base, "pad_token_id": 0}), None),
        "phi3-long": (t.Phi3Config(**{**base, **long, "pad_token_id": 0}), None),
    }


_MATRICES = re.compile(r"(self_attn|linear_attn|mlp)\..*(q|k|v|o|gate|up|down)_proj\.weight$")
_TYPE = "F8_E4M3"


def _f8_blocks(config: dict[str, Any], sources: dict[str, Any]) -> None:
    """As DeepSeek and Qwen do it, here with blocks of 48 by 64."""
    height, width = 48, 64
    for name in filter(_MATRICES.search, list(sources)):
        rows, columns = sources[name][1]
        sources[name] = (_TYPE, [rows, columns])
        sources[f"{name}_scale_inv"] = ("F32", [-(-rows // height), -(-columns // width)])
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [height, width]}


def _f8_rows(config: dict[str, Any], sources: dict[str, Any]) -> None:
    """As compressed-tensors and fbgemm do it."""
    for name in filter(_MATRICES.search, list(sources)):
        sources[name] = (_TYPE, sources[name][1])
        sources[f"{name}_scale"] = ("BF16", [sources[name][1][0], 1])
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


def _f8_matrices(config: dict[str, Any], sources: dict[str, Any]) -> None:
    """As Mistral does it: one scale for all of a matrix, another for activations, which is not used."""
    for name in filter(_MATRICES.search, list(sources)):
        sources[name] = (_TYPE, sources[name][1])
        sources[f"{name}_scale_inv"] = ("BF16", [])
        sources[name.removesuffix("weight") + "activation_scale"] = ("BF16", [])
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}


def _mxfp4(config: dict[str, Any], sources: dict[str, Any]) -> None:
    """As gpt-oss is published: rows of experts in blocks of 32 values."""
    for name in [name for name in sources if name.endswith(("gate_up_proj", "down_proj"))]:
        n, columns, rows = sources.pop(name)[1]
        sources[f"{name}_blocks"] = ("U8", [n, rows, columns // 32, 16])
        sources[f"{name}_scales"] = ("U8", [n, rows, columns // 32])
    config["quantization_config"] = {"quant_method": "mxfp4"}


def _fused(config: dict[str, Any], sources: dict[str, Any]) -> None:
    """As Qwen 3.5 is published: all experts of a layer in one tensor, gate and up as well."""
    n = config["num_experts"]
    for name in [name for name in sources if ".experts." in name]:
        before, number, role, _ = re.fullmatch(r"(.*experts\.)(\d+)\.(\w+)_proj(\.weight)", name).groups()  # type: ignore[union-attr]
        dtype, (rows, columns) = sources.pop(name)
        if number == "0" and role != "gate":
            fused = {"up": ("gate_up", 2 * rows), "down": ("down", rows)}[role]
            sources[f"{before}{fused[0]}_proj"] = (dtype, [n, fused[1], columns])


def make(name: str, config: Any, change: Any, converter: Path, place: Path) -> dict[str, Any]:
    """What is kept of one variant; ``change`` makes other tensors of those that transformers saves."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    saved, folder, twin = place / "saved", place / name, place / f"{name}.gguf"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(saved)
    header = (saved / "model.safetensors").read_bytes()
    entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    sources = {key: (entry["dtype"], entry["shape"]) for key, entry in entries.items() if key != "__metadata__"}
    own = json.loads((saved / "config.json").read_text())
    if change is not None:
        change(own, sources)
    write_folder(folder, own, sources)
    command = [sys.executable, "-c", _CONVERT, str(converter), str(folder), "--outfile", str(twin)]
    if own["model_type"].startswith("qwen3_5"):
        command.append("--no-mtp")
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    kept = {"config": own, "sources": sources, "twin": _twin(twin)}
    return {**kept, "logits": [round(float(value), 4) for value in _logits(folder, own)]}


def _logits(folder: Path, config: dict[str, Any]) -> Any:
    """Of transformers, in 32 bits, after the tokens; 8-bit floats, which it computes on other devices alone, made such
    before."""
    import torch  # noqa: PLC0415
    from safetensors.torch import load_file, save_file  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    file, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    block = config.get("quantization_config", {}).get("weight_block_size")
    if any(tensor.dtype == torch.float8_e4m3fn for tensor in tensors.values()):
        plain = {}
        for name, tensor in tensors.items():
            scale = tensors.get(f"{name}_scale_inv", tensors.get(f"{name}_scale"))
            if scale is not None:
                scale = scale.float()
                if block:
                    scale = scale.repeat_interleave(block[0], 0)[: tensor.shape[0]]
                    scale = scale.repeat_interleave(block[1], 1)[:, : tensor.shape[1]]
                tensor = (tensor.float() * scale).bfloat16()
            if "scale" not in name:
                plain[name] = tensor.contiguous()
        save_file(plain, file, {"format": "pt"})
        left = {key: value for key, value in config.items() if key != "quantization_config"}
        (folder / "config.json").write_text(json.dumps(left))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([TOKENS])).logits[0, -1]


def _twin(path: Path) -> dict[str, Any]:
    import gguf  # noqa: PLC0415

    reader = gguf.GGUFReader(path)
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "tokenizer.")) and name != "general.name"
    }
    tensors = {
        tensor.name: (
            tensor.tensor_type.name,
            int(tensor.shape[0]),
            int(tensor.n_elements // tensor.shape[0]),
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
        )
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def main() -> None:
    """Makes all, or one, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converter", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, (config, change) in variants().items():
        if not arguments.only or name in arguments.only:
            with tempfile.TemporaryDirectory() as place:
                found[name] = make(name, config, change, arguments.converter, Path(place))
            print(name, len(found[name]["twin"]["tensors"]), "tensors", flush=True)
            lines = [f"{json.dumps(key)}:{json.dumps(found[key], separators=(',', ':'))}" for key in sorted(found)]
            RESULT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
