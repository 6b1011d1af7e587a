"""The ``qwen35`` and ``qwen35moe`` architectures: Qwen 3.5 and 3.6, dense or with experts. Most layers are recurrent
(gated delta nets), every fourth one attends, with a gate for its result; experts stand beside one that every token
uses."""

from dataclasses import dataclass, replace
from math import gcd

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import EVERY, Block, Measure, Slot
from tpi.model.common import Ffn, Head, Norm, ffn_block, output_head
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.states import RecurrentState
from tpi.model.steps import Rope, RopeStyle, Steps, Unary, V
from tpi.model.tensors import Tensors

NAMES = ("qwen35", "qwen35moe")

_INTERVAL = 4


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Recurrence or attention, and experts, of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    eps, has_experts = meta.epsilon("attention.layer_norm_rms_epsilon"), meta.architecture == "qwen35moe"
    attention, net = Attention(heads.dim, eps, _read_rope(meta, dimensions, heads)), _read_net(meta)
    recurrence = Recurrence(net, eps)
    norm = Norm(eps)
    dense, routed = Ffn(norm), ExpertFfn(norm, Routing(Gating.SOFTMAX, True, 1.0, *read_groups(meta)))
    for layer, is_recurrent in enumerate(_read_kinds(meta, dimensions.n_layers)):
        at = f"blk.{layer}."
        if is_recurrent:
            slots = _recurrent_slots(at, n_embd, net, tensors)
            measures = (_value_heads(net, slots),)
            found.append(Block(len(found), "recurrence", layer, measures, slots, recurrence, net.state))
        else:
            slots = _attention_slots(at, n_embd, heads, tensors)
            found.append(Block(len(found), "attention", layer, (heads.measure(slots),), slots, attention, heads.state))
        if has_experts:
            sizes = read_sizes(meta, may_be_silent=True)
            n_shared = meta.integer("expert_shared_feed_forward_length", 0) or meta.sole("feed_forward_length")
            found.append(
                expert_block(
                    len(found), layer, n_embd, sizes, tensors, routed, norm="post_attention_norm", n_shared=n_shared
                )
            )
        else:
            n_ff = meta.sole("feed_forward_length")
            found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, dense, norm="post_attention_norm"))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))


@dataclass(frozen=True)
class Net:
    """A gated delta net: ``n_keys`` key heads and ``n_each`` times as many value heads, of ``dim`` values; a kernel
    looks at ``n_kernel`` tokens. Value heads i, i + n_keys, i + 2 n_keys and so on look at key head i."""

    n_keys: int
    n_each: int
    dim: int
    n_kernel: int

    @property
    def n_values(self) -> int:
        return self.n_keys * self.n_each

    @property
    def state(self) -> RecurrentState:
        """The rows before that a kernel looks at: v of every value head, q and k of every key head; and a matrix for
        every value head."""
        n_before = (self.n_kernel - 1) * self.dim
        return RecurrentState((n_before, self.dim * self.dim), (2 * n_before, 0), self.n_each)

    def starts(self, n: int, step: int) -> tuple[int, ...]:
        """Where the heads begin that come ``n`` times, ``step`` rows each, in every run of heads."""
        return tuple(number * self.n_keys * step for number in range(n))

    @property
    def turns(self) -> tuple[int, ...]:
        """A run has one value head of every key head."""
        return tuple(range(self.n_each))


def _read_kinds(meta: Metadata, n_layers: int) -> tuple[bool, ...]:
    """Whether each layer is recurrent."""
    flags = meta.flags("attention.recurrent_layers", n_layers)
    if flags is not None:
        return flags
    interval = meta.integer("full_attention_interval", _INTERVAL)
    meta.require(interval > 0, "full_attention_interval", interval)
    return tuple((layer + 1) % interval != 0 for layer in range(n_layers))


def _read_net(meta: Metadata) -> Net:
    n_keys, n_values = meta.positive("ssm.group_count"), meta.positive("ssm.time_step_rank")
    dim, n_kernel = meta.positive("ssm.state_size"), meta.positive("ssm.conv_kernel")
    meta.require(n_values % n_keys == 0, "ssm.time_step_rank", n_values)
    meta.require(meta.positive("ssm.inner_size") == n_values * dim, "ssm.inner_size", meta.positive("ssm.inner_size"))
    meta.require(2 <= n_kernel <= 64, "ssm.conv_kernel", n_kernel)
    return Net(n_keys, n_values // n_keys, dim, n_kernel)


def _read_rope(meta: Metadata, dimensions: Dimensions, heads: Heads) -> Rope:
    """Of text all sections of a position are equal, so that they turn as one; the last one would be 0."""
    sections = meta.each("rope.dimension_sections", 4)
    if sections[3]:
        raise UnsupportedModelError(f"{meta.file}: rope of {sections[3]} more dimensions is not supported")
    return read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, may_be_part=True)


def _value_heads(net: Net, slots: tuple[Slot, ...]) -> Measure:
    """Value heads, those of one key head after the other: cut between key heads or, among more ranks, within them, as
    far as the columns of the output can be cut there."""
    out = slots[-1]
    block, n_keys = out.tensor.type.block_elements, net.n_keys
    at_once = block // gcd(block, net.dim)
    is_even = n_keys * net.dim % block == 0 and n_keys % at_once == 0
    unit = net.n_each * (at_once if is_even else n_keys)
    return Measure("value heads", net.n_values, unit, 1 if at_once == 1 else unit)


def _recurrent_slots(at: str, n_embd: int, net: Net, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n, n_values, each = net.dim, net.n_each, net.n_values, net.n_each
    n_rows = n_values * dim + 2 * net.n_keys * dim
    every, values, ones = net.starts(2 + n, dim), net.starts(n, dim), net.starts(n, 1)
    qkv_turns = (EVERY, EVERY, *net.turns)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        replace(
            tensors.rows("qkv", at + "attn_qkv.weight", (n_embd, n_rows), dim, each, starts=every), turns=qkv_turns
        ),
        _of_values(net, tensors.rows("z", at + "attn_gate.weight", (n_embd, n_values * dim), dim, each, starts=values)),
        _of_values(net, tensors.rows("beta", at + "ssm_beta.weight", (n_embd, n_values), 1, each, starts=ones)),
        _of_values(net, tensors.rows("alpha", at + "ssm_alpha.weight", (n_embd, n_values), 1, each, starts=ones)),
        _of_values(net, tensors.values("dt", at + "ssm_dt.bias", n_values, 1, each, ones)),
        _of_values(net, tensors.values("decay", at + "ssm_a", n_values, 1, each, ones)),
        replace(
            tensors.vectors("kernels", at + "ssm_conv1d.weight", (net.n_kernel, n_rows), dim, each, every),
            turns=qkv_turns,
        ),
        tensors.copy("out_norm", at + "ssm_norm.weight", dim),
        _of_values(
            net,
            tensors.columns("out", at + "ssm_out.weight", (n_values * dim, n_embd), dim, group=each, starts=values),
        ),
    )


def _of_values(net: Net, slot: Slot) -> Slot:
    return replace(slot, turns=net.turns)


def _attention_slots(at: str, n_embd: int, heads: Heads, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n = heads.dim, heads.n
    q, k, v = heads.qkv(tensors, at, n_embd, 2)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        replace(q, role="q_and_gate"),
        tensors.copy("q_norm", at + "attn_q_norm.weight", dim),
        k,
        tensors.copy("k_norm", at + "attn_k_norm.weight", dim),
        v,
        tensors.columns("o", at + "attn_output.weight", (n * dim, n_embd), dim),
    )


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with normed heads; the query's matrix also makes a gate for every head."""

    head_dim: int
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        dim = self.head_dim
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        both = g.heads(g.matmul("q_and_gate", x), 2 * dim)
        q, gate = g.rms_norm(g.some(both, 0, dim), "q_norm", self.rms_eps), g.some(both, dim, dim)
        k = g.rms_norm(g.heads(g.matmul("k", x), dim), "k_norm", self.rms_eps)
        q, k = g.rope(q, self.rope, dim), g.rope(k, self.rope, dim)
        attended = g.rows(g.attention(q, k, g.matmul("v", x), inverse_root(dim)))
        return g.matmul("o", g.multiply(attended, g.apply(Unary.SIGMOID, g.rows(gate))))


@dataclass(frozen=True)
class Recurrence:
    """A gated delta net: q, k and v go through a short convolution, then the delta rule, norm and gate."""

    net: Net
    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        dim = self.net.dim
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        qkv, z = g.matmul("qkv", x), g.matmul("z", x)
        beta = g.apply(Unary.SIGMOID, g.matmul("beta", x))
        alpha = g.plus(g.matmul("alpha", x), "dt")
        decay = g.times(g.apply(Unary.SOFTPLUS, alpha), "decay")
        mixed, z = g.heads(g.apply(Unary.SILU, g.causal_conv(qkv, "kernels")), dim), g.heads(z, dim)
        n_values = g.n_heads(z)
        n_keys = (g.n_heads(mixed) - n_values) // 2
        q, k = (self._normed(g, g.some_heads(mixed, number * n_keys, n_keys)) for number in range(2))
        v = g.some_heads(mixed, 2 * n_keys, n_values)
        made = g.rms_norm(g.delta_net(q, k, v, decay, beta), "out_norm", self.rms_eps)
        gated = g.multiply(made, g.apply(Unary.SILU, z))
        return g.matmul("out", g.rows(gated))

    def _normed(self, g: Steps[V], x: V) -> V:
        """Every head of length 1."""
        dim = self.net.dim
        return g.scale(g.rms_norm(x, None, self.rms_eps / dim), inverse_root(dim))
