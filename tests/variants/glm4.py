"""glm4 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping

from tests.variants.made import N_VOCAB, Made, dense, fuse_qkv

_HEAD, _FF = 32, 256


def glm4(n_layers: int, *, is_biased: bool = False, sections: tuple[int, ...] = (), n_predicting: int = 0) -> Made:
    """Of 9B and 32B, the first of which have biases, those for images ``sections``, and GLM-OCR layers that predict
    further tokens."""
    n_heads, n_kv_heads, n_embd = 6, 2, 192
    made = dense("glm4", n_layers, n_embd, n_heads, n_kv_heads, _HEAD, _FF)
    made.entries["rope.dimension_count"] = _HEAD // 2
    if sections:
        made.entries["rope.dimension_sections"] = list(sections)
    if n_predicting:
        made.entries["nextn_predict_layers"] = n_predicting
    for layer in range(n_layers):
        at = f"blk.{layer}."
        del made.tensors[at + "ffn_gate.weight"]
        made.add(at + "ffn_up", 2 * _FF, n_embd)
        made.add_output(at + "post_attention_norm", n_embd)
        made.add_output(at + "post_ffw_norm", n_embd)
        if is_biased:
            for name, n in (("q", n_heads), ("k", n_kv_heads), ("v", n_kv_heads)):
                made.add(f"{at}attn_{name}.bias", n * _HEAD)
        if layer >= n_layers - n_predicting:
            made.add(at + "nextn.eh_proj", n_embd, 2 * n_embd)
            made.add(at + "nextn.enorm", n_embd)
            made.add(at + "nextn.hnorm", n_embd)
    made.add("output", N_VOCAB, n_embd)
    return made


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "glm4 9B": lambda: glm4(4, is_biased=True),
    "glm4 32B": lambda: glm4(5),
    "glm4 32B fused": lambda: fuse_qkv(glm4(5)),
    "glm4 9B sections": lambda: glm4(4, is_biased=True, sections=(2, 3, 3, 0)),
    "glm4 predicting": lambda: glm4(4, n_predicting=1),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "glm4": lambda: glm4(2, is_biased=True),
}
"""With which headers are falsified."""
