"""Writes one of the two trained models as GGUF, with the demo model's tokenizer and chat template inside.

``python -m tests.trained.export windowed --checkpoint trained-run/windowed/checkpoint.pt --out FILE``. Needs torch.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch

from demo.export import CHAT_TEMPLATE
from demo.tokenizer import BOS, END, SAVED, SPECIALS, Tokenizer
from tests.trained import deltas, windowed
from tests.trained.parts import CONTEXT, ROPE_BASE, VOCABULARY

Array = npt.NDArray[np.float32]
Shape = windowed.Shape | deltas.Shape
SHAPES: dict[str, Shape] = {"windowed": windowed.Shape(), "deltas": deltas.Shape()}
DESCRIPTIONS = {
    "windowed": "Test data: tells short stories; experts, sinks, a window in every other layer",
    "deltas": "Test data: tells short stories; gated delta nets, experts, full attention in every fourth layer",
}
FILE_TYPES = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_FUSED = {
    "ffn.gate_up_exps": ("ffn_gate_exps.weight", "ffn_up_exps.weight"),
    "ffn.gate_up_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias"),
    "ffn_gate_up_shexp.weight": ("ffn_gate_shexp.weight", "ffn_up_shexp.weight"),
}
_RENAMED = {
    "ffn.down_exps": "ffn_down_exps.weight",
    "ffn.down_bias": "ffn_down_exps.bias",
    "ffn.gate_inp.weight": "ffn_gate_inp.weight",
    "ffn.gate_inp.bias": "ffn_gate_inp.bias",
    "ffn_gate_inp_shexp": "ffn_gate_inp_shexp.weight",
    "attn_sinks": "attn_sinks.weight",
    "ssm_conv1d": "ssm_conv1d.weight",
    "ssm_dt": "ssm_dt.bias",
    "a_log": "ssm_a",
}


def named_tensors(weights: dict[str, torch.Tensor]) -> dict[str, Array]:
    """The weights under GGUF's names, fused ones cut apart; float32, rows last but one."""
    tensors: dict[str, Array] = {}
    for name, weight in weights.items():
        array: Array = weight.float().numpy()
        parts = name.replace("attention.", "").split(".", 2)
        at, own = (f"{parts[0]}.{parts[1]}.", parts[2]) if parts[0] == "blk" else ("", ".".join(parts))
        if own in _FUSED:
            halves = np.split(array, 2, axis=-1 if own.endswith("bias") else -2)
            for half, single in zip(halves, _FUSED[own], strict=True):
                tensors[at + single] = np.ascontiguousarray(half)
        else:
            tensors[at + _RENAMED.get(own, own)] = -np.exp(array) if own == "a_log" else array
    return tensors


def is_exact(name: str, n_dims: int) -> bool:
    """Whether a tensor is F32 in every file: vectors, biases, routers and convolutions, as llama.cpp wants them."""
    return n_dims == 1 or any(part in name for part in ("bias", "gate_inp", "conv1d"))


def add_shape(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The dimensions, as the architecture calls them."""
    writer.add_vocab_size(VOCABULARY)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layers)
    writer.add_head_count(shape.n_heads)
    writer.add_head_count_kv(shape.n_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_expert_count(shape.n_experts)
    writer.add_expert_used_count(shape.n_used)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_feed_forward_length(shape.expert_width)
    if isinstance(shape, windowed.Shape):
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_sliding_window(shape.window)
        return
    writer.add_rope_dimension_count(shape.n_rot)
    writer.add_rope_dimension_sections(shape.rope_sections)
    writer.add_expert_shared_feed_forward_length(shape.shared_width)
    writer.add_full_attention_interval(shape.full_attention_interval)
    writer.add_ssm_conv_kernel(shape.kernel)
    writer.add_ssm_inner_size(shape.inner)
    writer.add_ssm_state_size(shape.state_size)
    writer.add_ssm_time_step_rank(shape.n_value_heads)
    writer.add_ssm_group_count(shape.n_key_heads)


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    """The demo model's tokenizer, and how a conversation is laid out."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if number < len(SPECIALS) else normal for number in range(VOCABULARY)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_pad_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write(name: str, weights: dict[str, torch.Tensor], kind: str, path: Path) -> None:
    """Writes the file with its matrices in that type; an existing one is replaced when the new one is complete."""
    unfinished = path.with_suffix(".new")
    writer = gguf.GGUFWriter(unfinished, SHAPES[name].architecture)
    writer.add_name(f"tpi test storyteller {name}")
    writer.add_description(DESCRIPTIONS[name])
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, SHAPES[name])
    add_tokenizer(writer, Tokenizer.load(SAVED))
    for tensor, array in named_tensors(weights).items():
        own = gguf.GGMLQuantizationType["F32" if is_exact(tensor, array.ndim) else kind]
        writer.add_tensor(tensor, gguf.quants.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def main() -> None:
    """Parses the arguments and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=tuple(SHAPES))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", choices=tuple(FILE_TYPES), default="F16")
    options = parser.parse_args()
    saved = torch.load(options.checkpoint, weights_only=True)
    write(options.name, saved["model"], options.type, options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes, step {saved['step']}, {saved['seen']} tokens")


if __name__ == "__main__":
    main()
