"""Writes the trained demo model as GGUF: matrices in Q8_0, norms in F32, tokenizer and chat template inside.

``python -m demo.export --checkpoint demo-run/checkpoint.pt --out src/tpi/assets/demo.gguf``. Needs torch and gguf.
"""

import argparse
from pathlib import Path

import gguf
import numpy as np
import torch

from demo.model import Shape
from demo.tokenizer import BOS, END, SAVED, SPECIALS, Tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] | trim }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] | trim }}<|end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def named_tensors(weights: dict[str, torch.Tensor], shape: Shape) -> dict[str, np.ndarray]:
    """The weights under GGUF's names, fused matrices cut apart; float32, [output, input]."""
    tensors = {}
    for name, weight in weights.items():
        array = weight.float().numpy()
        if name.endswith("attn_qkv.weight"):
            for part, rows in zip("qkv", np.split(array, 3), strict=True):
                tensors[name.replace("qkv", part)] = rows
        elif name.endswith("ffn_gate_up.weight"):
            for part, rows in zip(("gate", "up"), np.split(array, 2), strict=True):
                tensors[name.replace("gate_up", part)] = rows
        else:
            tensors[name] = array
    assert len(tensors) == 2 + 9 * shape.layers
    return tensors


def write(weights: dict[str, torch.Tensor], shape: Shape, tokenizer: Tokenizer, path: Path) -> None:
    """Writes the file; an existing one is replaced only when the new one is complete."""
    unfinished = path.with_suffix(".new")
    writer = gguf.GGUFWriter(unfinished, "llama")
    writer.add_name("tpi demo storyteller")
    writer.add_description("Tells short stories; made to show tpi at work")
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.tokens)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_token_types([control if number < len(SPECIALS) else normal for number in range(shape.vocabulary)])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END)
    writer.add_eot_token_id(END)
    writer.add_pad_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    for name, array in named_tensors(weights, shape).items():
        if array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, q8_0), raw_dtype=q8_0)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.replace(path)


def main() -> None:
    """Parses the arguments and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("src/tpi/assets/demo.gguf"))
    options = parser.parse_args()
    saved = torch.load(options.checkpoint, weights_only=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write(saved["model"], Shape(), Tokenizer.load(SAVED), options.out)
    print(f"{options.out}: {options.out.stat().st_size} bytes, step {saved['step']}, {saved['seen']} tokens")


if __name__ == "__main__":
    main()
