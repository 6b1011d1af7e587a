"""Qwen 3.5 and 3.6, dense and with experts. Norms are stored without the 1 that is added to them; value heads are put
in another order: the first of every key head, then the second of every key head, and so on."""

from dataclasses import dataclass

from tpi.errors import ModelFileError
from tpi.hub.config import Config
from tpi.hub.description import Description
from tpi.hub.families.common import Entries, base_entries, begin, head_dim, layers_of, rope_of
from tpi.hub.families.experts import put_experts
from tpi.hub.folder import HubFolder
from tpi.hub.values import Axes, Changed, Columns, Rows, Stacked, Values

_DENSE = ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration")
_SPARSE = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
CLASSES = _DENSE + _SPARSE
_NAMES = {f"self_attn.{role}_proj.weight": f"attn_{role}.weight" for role in "qkv"} | {
    "self_attn.o_proj.weight": "attn_output.weight",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
}
_NAMES |= {f"mlp.{role}_proj.weight": f"ffn_{role}.weight" for role in ("gate", "up", "down")}
_NAMES |= {f"mlp.shared_expert.{role}_proj.weight": f"ffn_{role}_shexp.weight" for role in ("gate", "up", "down")}
_NORMS = {
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
}
_SECTIONS = (11, 11, 10)
_PARTIAL = 0.25


@dataclass(frozen=True)
class Net:
    """``n_keys`` key heads with ``n_each`` value heads, of ``key_dim`` and ``value_dim`` values."""

    n_keys: int
    n_each: int
    key_dim: int
    value_dim: int

    def turned(self, dim: int, first: int = 0) -> Axes:
        """Value heads of ``dim`` rows or columns from ``first`` on, in the other order."""
        return Axes(((self.n_each, dim), (self.n_keys, self.n_each * dim), (dim, 1)), first)


def describe(folder: HubFolder) -> Description:
    """Raises:
    ModelFileError, UnsupportedModelError: an entry or a tensor is missing or impossible.
    """
    config = folder.config
    net = _read_net(config)
    is_sparse = folder.found_class(CLASSES) in _SPARSE
    to = begin(folder, "qwen35moe" if is_sparse else "qwen35", _entries(config, net))
    to.put("output_norm.weight", Changed(folder.values(f"{to.prefix}norm.weight"), "plus 1"))
    folder.skip("visual.", "mtp.")
    for layer in range(layers_of(to)):
        source, target = f"{to.prefix}layers.{layer}.", f"blk.{layer}."
        to.rename(_NAMES, source, target)
        for theirs, ours in _NORMS.items():
            if source + theirs in folder:
                to.put(target + ours, Changed(folder.values(source + theirs), "plus 1"))
        if f"{source}linear_attn.A_log" in folder:
            _put_net(to, f"{source}linear_attn.", target, net)
        if is_sparse:
            put_experts(to, f"{source}mlp.experts.", target, config.integer("num_experts"))
    return to


def _put_net(to: Description, source: str, target: str, net: Net) -> None:
    values, n_qk = to.folder.values, 2 * net.n_keys * net.key_dim
    heads = net.turned(net.value_dim)
    to.put(f"{target}attn_gate.weight", _rows(to, values(f"{source}in_proj_z.weight"), heads))
    to.put(f"{target}ssm_alpha.weight", _rows(to, values(f"{source}in_proj_a.weight"), net.turned(1)))
    to.put(f"{target}ssm_beta.weight", _rows(to, values(f"{source}in_proj_b.weight"), net.turned(1)))
    to.put(f"{target}ssm_out.weight", _columns(to, values(f"{source}out_proj.weight"), heads))
    decay = Changed(values(f"{source}A_log"), "minus exp")
    to.put(f"{target}ssm_a", _columns(to, decay, net.turned(1)))
    to.put(f"{target}ssm_dt.bias", _columns(to, values(f"{source}dt_bias"), net.turned(1)))
    for theirs, ours in (("in_proj_qkv", "attn_qkv"), ("conv1d", "ssm_conv1d")):
        whole = values(f"{source}{theirs}.weight")
        _check(to, whole.n_rows, n_qk + heads.size)
        parts = Rows(whole, Axes(((n_qk, 1),))), Rows(whole, net.turned(net.value_dim, n_qk))
        to.put(f"{target}{ours}.weight", Stacked(parts))


def _rows(to: Description, values: Values, axes: Axes) -> Rows:
    _check(to, values.n_rows, axes.size)
    return Rows(values, axes)


def _columns(to: Description, values: Values, axes: Axes) -> Columns:
    _check(to, values.n_columns, axes.size)
    return Columns(values, axes)


def _check(to: Description, found: int, expected: int) -> None:
    if found != expected:
        raise ModelFileError(f"{to.folder.path}: a tensor for value heads has {found} rows or columns, not {expected}")


def _read_net(config: Config) -> Net:
    n_keys, n_values = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    if not 0 < n_keys <= n_values or n_values % n_keys:
        raise config.impossible("linear_num_value_heads")
    dims = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
    return Net(n_keys, n_values // n_keys, *dims)


def _entries(config: Config, net: Net) -> Entries:
    rope = rope_of(config)
    sections = tuple(int(size) for size in rope.numbers("mrope_section")) or _SECTIONS
    entries = base_entries(config) | {
        "ssm.conv_kernel": config.integer("linear_conv_kernel_dim"),
        "ssm.state_size": net.key_dim,
        "ssm.group_count": net.n_keys,
        "ssm.time_step_rank": net.n_keys * net.n_each,
        "ssm.inner_size": net.n_keys * net.n_each * net.value_dim,
        "full_attention_interval": config.integer("full_attention_interval", 4),
        "rope.dimension_count": int(head_dim(config) * rope.number("partial_rotary_factor", _PARTIAL)),
        "rope.dimension_sections": (*sections, 0)[:4],
    }
    kinds = config.list("layer_types")
    if kinds:
        entries["attention.recurrent_layers"] = tuple(kind == "linear_attention" for kind in kinds)
    for theirs, ours in (
        ("moe_intermediate_size", "expert_feed_forward_length"),
        ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ):
        if theirs in config:
            entries[ours] = config.integer(theirs)
    return entries
