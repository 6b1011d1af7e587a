"""mamba2, granitehybrid, nemotron_h and falcon-h1 with random weights. Called by tests only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from tests.variants.made import (
    Entries,
    Made,
    Tensor,
    add_ends,
    add_experts,
    add_ffn,
    add_router,
    base_entries,
    normal,
    uniform,
)

_EMBD, _KERNEL, _STATE, _HEAD = 128, 4, 16, 32


@dataclass(frozen=True)
class Scan:
    """Heads of ``dim`` values, in groups."""

    n_heads: int = 8
    n_groups: int = 1
    dim: int = 32

    @property
    def n_inner(self) -> int:
        return self.n_heads * self.dim

    @property
    def entries(self) -> Entries:
        return {
            "ssm.conv_kernel": _KERNEL,
            "ssm.state_size": _STATE,
            "ssm.group_count": self.n_groups,
            "ssm.time_step_rank": self.n_heads,
            "ssm.inner_size": self.n_inner,
        }


def add_scan(made: Made, at: str, n_embd: int, scan: Scan) -> None:
    """Some heads forget slowly, so that what they keep from hundreds of tokens counts."""
    n_convolved = scan.n_inner + 2 * scan.n_groups * _STATE
    made.add(at + "ssm_in", scan.n_inner + n_convolved + scan.n_heads, n_embd)
    made.add(at + "ssm_conv1d", n_convolved, _KERNEL)
    made.add(at + "ssm_conv1d.bias", n_convolved)
    made.add(at + "ssm_dt.bias", scan.n_heads, draw=normal(0.5))
    made.add(at + "ssm_a", scan.n_heads, 1, draw=lambda random, size: -np.exp(random.uniform(-5.0, 0.5, size)))
    made.add(at + "ssm_d", scan.n_heads, 1, draw=normal(1.0))
    made.add(at + "ssm_norm", scan.n_groups, scan.n_inner // scan.n_groups)
    made.add_output(at + "ssm_out", n_embd, scan.n_inner)


def mamba2(n_layers: int, scan: Scan, *, is_tied: bool = False) -> Made:
    """Recurrences alone."""
    entries = base_entries(n_layers, _EMBD, 4, 4, _HEAD, 0, **scan.entries)
    made = Made("mamba2", {key: entries[key] for key in entries if not key.startswith("attention.h")})
    add_ends(made, _EMBD)
    if is_tied:
        del made.tensors["output.weight"]
    for layer in range(n_layers):
        made.add(f"blk.{layer}.attn_norm", _EMBD)
        add_scan(made, f"blk.{layer}.", _EMBD, scan)
    return made


def granitehybrid(n_layers: int, scan: Scan, *, n_experts: int = 0, n_shared: int = 0, is_turned: bool = True) -> Made:
    """Every third layer attends."""
    n_kv = [2 if layer % 3 == 2 else 0 for layer in range(n_layers)]
    entries = base_entries(n_layers, _EMBD, 4, 4, _HEAD, 64, **scan.entries)
    made = Made("granitehybrid", entries)
    made.entries |= {
        "attention.head_count_kv": n_kv,
        "attention.scale": 0.1,
        "embedding_scale": 4.0,
        "residual_scale": 0.5,
        "logit_scale": 8.0,
        "rope.scaling.finetuned": is_turned,
    }
    if n_experts:
        made.entries |= {"expert_count": n_experts, "expert_used_count": 4}
    if n_shared:
        made.entries["expert_shared_feed_forward_length"] = n_shared
    add_ends(made, _EMBD)
    for layer, has_heads in enumerate(n_kv):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        if has_heads:
            _add_attention(made, at)
        else:
            add_scan(made, at, _EMBD, scan)
        made.add(at + "ffn_norm", _EMBD)
        if not n_experts:
            add_ffn(made, at, _EMBD, 64)
            continue
        add_router(made, at, _EMBD, n_experts)
        add_experts(made, at, _EMBD, 64, n_experts)
        if n_shared:
            add_ffn(made, at, _EMBD, n_shared, "_shexp")
    return made


def nemotron_h(kinds: str, scan: Scan, *, has_biases: bool = False) -> Made:
    """A letter for every layer: ``m`` recurrence, ``a`` attention, ``f`` network."""
    entries = base_entries(len(kinds), _EMBD, 4, 4, _HEAD, 0, **scan.entries)
    made = Made("nemotron_h", entries)
    made.entries |= {
        "attention.head_count_kv": [2 if kind == "a" else 0 for kind in kinds],
        "feed_forward_length": [256 if kind == "f" else 0 for kind in kinds],
        "attention.layer_norm_epsilon": 1e-5,
    }
    add_ends(made, _EMBD)
    for layer, kind in enumerate(kinds):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        if kind == "m":
            add_scan(made, at, _EMBD, scan)
        elif kind == "a":
            _add_attention(made, at)
            if has_biases:
                made.add(at + "attn_output.bias", _EMBD)
        else:
            made.add(at + "ffn_up", 256, _EMBD)
            made.add_output(at + "ffn_down", _EMBD, 256)
            if has_biases:
                made.add(at + "ffn_up.bias", 256)
                made.add(at + "ffn_down.bias", _EMBD)
    return made


def falcon_h1(n_layers: int, scan: Scan, *, is_normed: bool = False, has_biases: bool = False) -> Made:
    """Both in every layer."""
    entries = base_entries(n_layers, _EMBD, 4, 2, _HEAD, 192, **scan.entries)
    made = Made("falcon-h1", entries)
    add_ends(made, _EMBD)
    for layer in range(n_layers):
        at = f"blk.{layer}."
        made.add(at + "attn_norm", _EMBD)
        add_scan(made, at, _EMBD, scan)
        if not is_normed:
            del made.tensors[at + "ssm_norm.weight"]
        _add_attention(made, at)
        made.tensors[at + "ffn_norm"] = Tensor((_EMBD,), uniform(0.8, 1.2))
        add_ffn(made, at, _EMBD, 192)
        if has_biases:
            for name, n in (("gate", 192), ("up", 192), ("down", _EMBD)):
                made.add(f"{at}ffn_{name}.bias", n)
    return made


def _add_attention(made: Made, at: str) -> None:
    for name, n in (("q", 4), ("k", 2), ("v", 2)):
        made.add(f"{at}attn_{name}", n * _HEAD, _EMBD)
    made.add_output(at + "attn_output", _EMBD, 4 * _HEAD)


VARIANTS: Mapping[str, Callable[[], Made]] = {
    "mamba2 2.7B": lambda: mamba2(6, Scan(), is_tied=True),
    "granitehybrid 3B": lambda: granitehybrid(6, Scan()),
    "granitehybrid 7B-A1B": lambda: granitehybrid(6, Scan(), n_experts=8, n_shared=96, is_turned=False),
    "nemotron_h 9B": lambda: nemotron_h("mfmafmf", Scan(16, 8)),
    "nemotron_h biased": lambda: nemotron_h("mfaf", Scan(16, 2), has_biases=True),
    "mamba2 Codestral": lambda: mamba2(6, Scan(16, 8, 32)),
    "falcon-h1 0.5B": lambda: falcon_h1(4, Scan()),
    "falcon-h1 7B": lambda: falcon_h1(4, Scan(8, 2)),
    "falcon-h1 normed": lambda: falcon_h1(4, Scan(), is_normed=True, has_biases=True),
    "falcon-h1 normed groups": lambda: falcon_h1(4, Scan(8, 2), is_normed=True),
}
SMALL: Mapping[str, Callable[[], Made]] = {
    "mamba2": lambda: mamba2(2, Scan()),
    "granitehybrid": lambda: granitehybrid(3, Scan(), n_experts=8),
    "nemotron_h": lambda: nemotron_h("mfa", Scan(8, 2)),
    "falcon-h1": lambda: falcon_h1(2, Scan(8, 2)),
    "falcon-h1, normed": lambda: falcon_h1(2, Scan(), is_normed=True),
    "mamba2, groups": lambda: mamba2(2, Scan(8, 4)),
}
"""With which headers are falsified."""
