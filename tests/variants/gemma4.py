"""gemma4 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tests.variants.made import N_VOCAB, Made, add_experts, add_ffn, add_router, base_entries, exactly, normal, uniform
from tests.variants.topics import topical

_LOCAL_DIM, _GLOBAL_DIM = 32, 64
_N_PER_LAYER = 32
_N_EXPERTS, _N_EXPERT_FF = 16, 32


@dataclass(frozen=True)
class Shape:
    """What differs between the models.

    Of every ``period`` layers the last sees all tokens, the others a window. The last ``n_shared`` layers have no cells
    of their own; ``has_unused_kv``: but the tensors for them. ``has_global_v``: layers that see all tokens have values
    of their own, instead of their keys before norm and rotation. ``experts`` is split or fused.
    """

    n_layers: int
    n_embd: int
    n_heads: int
    n_local_kv_heads: int
    n_global_kv_heads: int
    n_ff: int
    period: int = 6
    n_shared: int = 0
    is_double_wide: bool = False
    has_unused_kv: bool = False
    has_global_v: bool = True
    has_per_layer: bool = False
    experts: str | None = None

    @property
    def is_local(self) -> list[bool]:
        """Of every layer."""
        return [layer % self.period < self.period - 1 for layer in range(self.n_layers)]

    @property
    def n_kv_heads(self) -> list[int]:
        """Of every layer."""
        return [self.n_local_kv_heads if is_local else self.n_global_kv_heads for is_local in self.is_local]

    @property
    def ffn_widths(self) -> list[int]:
        """Of every layer."""
        n_wide = self.n_shared if self.is_double_wide else 0
        return [self.n_ff] * (self.n_layers - n_wide) + [2 * self.n_ff] * n_wide


def gemma4(shape: Shape) -> Made:
    """Arrays are written where layers differ, else one number, as the converter does."""
    n_embd, widths, n_kv_heads = shape.n_embd, shape.ffn_widths, shape.n_kv_heads
    made = Made("gemma4", base_entries(shape.n_layers, n_embd, shape.n_heads, 0, _GLOBAL_DIM, shape.n_ff))
    made.entries |= {
        "feed_forward_length": widths if shape.is_double_wide else shape.n_ff,
        "attention.head_count_kv": n_kv_heads if len(set(n_kv_heads)) > 1 else n_kv_heads[0],
        "attention.key_length_swa": _LOCAL_DIM,
        "attention.value_length_swa": _LOCAL_DIM,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "attention.sliding_window": 32,
        "attention.sliding_window_pattern": shape.is_local,
        "attention.shared_kv_layers": shape.n_shared,
        "embedding_length_per_layer_input": _N_PER_LAYER if shape.has_per_layer else 0,
        "final_logit_softcapping": 30.0,
        "rope.dimension_count": _GLOBAL_DIM,
        "rope.dimension_count_swa": _LOCAL_DIM,
        "rope.freq_base": 1000000.0,
        "rope.freq_base_swa": 10000.0,
    }
    if shape.experts:
        made.entries |= {"expert_count": _N_EXPERTS, "expert_used_count": 4, "expert_feed_forward_length": _N_EXPERT_FF}
    made.add("token_embd", N_VOCAB, n_embd, draw=topical(n_embd**-0.5))
    made.add("output_norm", n_embd)
    n_rotated = _GLOBAL_DIM // 8
    made.add("rope_freqs", _GLOBAL_DIM // 2, draw=exactly([1.0] * n_rotated + [1e30] * (_GLOBAL_DIM // 2 - n_rotated)))
    if shape.has_per_layer:
        made.add("per_layer_token_embd", N_VOCAB, _N_PER_LAYER * shape.n_layers, draw=normal(_N_PER_LAYER**-0.5))
        made.add("per_layer_model_proj", _N_PER_LAYER * shape.n_layers, n_embd)
        made.add("per_layer_proj_norm", _N_PER_LAYER)
    for layer, width in enumerate(widths):
        at = f"blk.{layer}."
        _add_attention(made, at, shape, layer)
        made.add(at + "ffn_norm", n_embd)
        add_ffn(made, at, n_embd, width)
        made.add_output(at + "post_ffw_norm", n_embd)
        if shape.experts:
            _add_experts(made, at, n_embd, shape.experts == "fused")
        if shape.has_per_layer:
            made.add(at + "inp_gate", _N_PER_LAYER, n_embd)
            made.add(at + "proj", n_embd, _N_PER_LAYER)
            made.add_output(at + "post_norm", n_embd)
        made.add(at + "layer_output_scale", 1)
    return made


def _add_attention(made: Made, at: str, shape: Shape, layer: int) -> None:
    is_local, n_embd, n_kv_heads = shape.is_local[layer], shape.n_embd, shape.n_kv_heads[layer]
    dim = _LOCAL_DIM if is_local else _GLOBAL_DIM
    of_head = uniform(1.2 * dim**-0.25, 1.6 * dim**-0.25)  # scores are not scaled: these spread them by two or so
    made.add(at + "attn_norm", n_embd)
    made.add(at + "attn_q", shape.n_heads * dim, n_embd)
    made.add(at + "attn_q_norm", dim, draw=of_head)
    if layer < shape.n_layers - shape.n_shared or shape.has_unused_kv:
        made.add(at + "attn_k", n_kv_heads * dim, n_embd)
        made.add(at + "attn_k_norm", dim, draw=of_head)
        if is_local or shape.has_global_v:
            made.add(at + "attn_v", n_kv_heads * dim, n_embd)
    made.add(at + "attn_output", n_embd, shape.n_heads * dim)
    made.add_output(at + "post_attention_norm", n_embd)


def _add_experts(made: Made, at: str, n_embd: int, is_fused: bool) -> None:
    add_router(made, at, n_embd, _N_EXPERTS, scale=n_embd**0.5)
    made.add(at + "ffn_gate_inp.scale", n_embd)
    made.add(at + "pre_ffw_norm_2", n_embd)
    made.add(at + "post_ffw_norm_1", n_embd)
    made.add(at + "post_ffw_norm_2", n_embd)
    add_experts(made, at, n_embd, _N_EXPERT_FF, _N_EXPERTS, is_fused=is_fused)
    made.add(at + "ffn_down_exps.scale", _N_EXPERTS, draw=uniform(0.5, 1.5))


_E2B = Shape(35, 256, 8, 1, 1, 256, period=5, n_shared=20, is_double_wide=True, has_per_layer=True)
_E4B = Shape(42, 128, 8, 2, 2, 256, n_shared=18, has_unused_kv=True, has_per_layer=True)

VARIANTS: Mapping[str, Callable[[], Made]] = {
    "gemma4 31B": lambda: gemma4(Shape(60, 128, 8, 4, 2, 256, has_global_v=False)),
    "gemma4 E2B": lambda: gemma4(_E2B),
    "gemma4 E4B": lambda: gemma4(_E4B),
    "gemma4 26B-A4B": lambda: gemma4(Shape(30, 128, 8, 4, 2, 96, has_global_v=False, experts="fused")),
    "gemma4 26B-A4B split": lambda: gemma4(Shape(30, 128, 8, 4, 2, 96, has_global_v=False, experts="split")),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "gemma4": lambda: gemma4(Shape(3, 64, 8, 4, 2, 64, period=3, has_global_v=False)),
    "gemma4, shared": lambda: gemma4(Shape(4, 64, 8, 1, 1, 64, period=2, n_shared=2, has_per_layer=True)),
    "gemma4, experts": lambda: gemma4(Shape(2, 64, 8, 4, 2, 64, period=2, experts="fused")),
}
"""With which headers are falsified."""
