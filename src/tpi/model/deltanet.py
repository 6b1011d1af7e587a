"""Gated delta nets: a recurrence whose value heads are cut among ranks, several to a key head. Files have them in two
orders: the value heads of a key head in turns with those of the others, or beside one another."""

from dataclasses import dataclass, replace
from math import gcd

from tpi.model.blocks import EVERY, Block, Measure, Slot
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.spans import Span
from tpi.model.states import RecurrentState
from tpi.model.steps import Steps, Unary, V
from tpi.model.tensors import Tensors


@dataclass(frozen=True)
class Net:
    """A gated delta net: ``n_keys`` key heads and ``n_each`` times as many value heads, of ``dim`` values; a kernel
    looks at ``n_kernel`` tokens. Value heads i, i + n_keys, i + 2 n_keys and so on look at key head i; in a block of
    :func:`paired_net_block` those from i times n_each on."""

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

    @property
    def paired_state(self) -> RecurrentState:
        """The same with the rows of v apart, behind the matrices."""
        n_before = (self.n_kernel - 1) * self.dim
        return RecurrentState((0, self.dim * self.dim, n_before), (2 * n_before, 0, 0), self.n_each)

    def starts(self, n: int, step: int) -> tuple[int, ...]:
        """Where the heads begin that come ``n`` times, ``step`` rows each, in every run of heads."""
        return tuple(number * self.n_keys * step for number in range(n))

    @property
    def turns(self) -> tuple[int, ...]:
        """A run has one value head of every key head."""
        return tuple(range(self.n_each))


def read_net(meta: Metadata) -> Net:
    """Raises:
    ModelFileError: an entry is missing or impossible.
    """
    n_keys, n_values = meta.positive("ssm.group_count"), meta.positive("ssm.time_step_rank")
    dim, n_kernel = meta.positive("ssm.state_size"), meta.positive("ssm.conv_kernel")
    meta.require(n_values % n_keys == 0, "ssm.time_step_rank", n_values)
    meta.require(meta.positive("ssm.inner_size") == n_values * dim, "ssm.inner_size", meta.positive("ssm.inner_size"))
    meta.require(2 <= n_kernel <= 64, "ssm.conv_kernel", n_kernel)
    return Net(n_keys, n_values // n_keys, dim, n_kernel)


def delta_net_block(index: int, layer: int, n_embd: int, net: Net, tensors: Tensors, rms_eps: float) -> Block:
    """The block whose value heads come in turns.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    slots = _recurrent_slots(f"blk.{layer}.", n_embd, net, tensors)
    measures = (_value_heads(net, slots),)
    return Block(index, "recurrence", layer, measures, slots, _Recurrence(net, rms_eps), net.state)


def paired_net_block(index: int, layer: int, n_embd: int, net: Net, tensors: Tensors, rms_eps: float) -> Block:
    """The block whose value heads lie beside one another, with the key head that they look at: cut between key heads.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    slots = _paired_slots(f"blk.{layer}.", n_embd, net, tensors)
    block, width = slots[-1].tensor.type.block_elements, net.n_each * net.dim
    at_once = block // gcd(block, width)
    unit = net.n_each * (at_once if net.n_keys % at_once == 0 else net.n_keys)
    measures = (Measure("value heads", net.n_values, unit, unit),)
    return Block(index, "recurrence", layer, measures, slots, _Paired(net, rms_eps), net.paired_state)


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


@dataclass(frozen=True)
class _Recurrence:
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
        q, k = (
            _of_length_one(g, g.some_heads(mixed, number * n_keys, n_keys), dim, self.rms_eps) for number in range(2)
        )
        v = g.some_heads(mixed, 2 * n_keys, n_values)
        made = g.rms_norm(g.delta_net(q, k, v, decay, beta), "out_norm", self.rms_eps)
        gated = g.multiply(made, g.apply(Unary.SILU, z))
        return g.matmul("out", g.rows(gated))


def _paired_slots(at: str, n_embd: int, net: Net, tensors: Tensors) -> tuple[Slot, ...]:
    """Queries, keys, values and gates may be one matrix, key head by key head."""
    dim, each, n_values = net.dim, net.n_each, net.n_values
    n_keyed, n_rows = 2 * net.n_keys * dim, (2 * net.n_keys + n_values) * dim
    of_keys, of_values = Span(0, n_keyed), Span(n_keyed, n_rows)
    keys = (0, net.n_keys * dim)
    if at + "ssm_in.weight" in tensors and at + "attn_qkv.weight" not in tensors:
        width = n_rows + n_values * dim
        made: tuple[Slot, ...] = (
            tensors.rows("qkvz", at + "ssm_in.weight", (n_embd, width), width // net.n_keys, each),
        )
    else:
        qkv, shape = at + "attn_qkv.weight", (n_embd, n_rows)
        made = (
            tensors.rows("qk", qkv, shape, dim, each, rows=of_keys, starts=keys),
            tensors.rows("v", qkv, shape, dim, rows=of_values),
            tensors.rows("z", at + "attn_gate.weight", (n_embd, n_values * dim), dim),
        )
    kernels, kernel_shape = at + "ssm_conv1d.weight", (net.n_kernel, n_rows)
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        *made,
        tensors.rows("beta_alpha", at + "ssm_ba.weight", (n_embd, 2 * n_values), 2 * each, each),
        tensors.values("dt", at + "ssm_dt.bias", n_values),
        tensors.values("decay", at + "ssm_a", n_values),
        replace(tensors.vectors("kernels", kernels, kernel_shape, dim, each, keys), rows=of_keys),
        replace(tensors.vectors("v_kernels", kernels, kernel_shape, dim), rows=of_values),
        tensors.copy("out_norm", at + "ssm_norm.weight", dim),
        tensors.columns("out", at + "ssm_out.weight", (n_values * dim, n_embd), dim),
    )


@dataclass(frozen=True)
class _Paired:
    """As :class:`_Recurrence`, with value heads beside one another: every key head is repeated for its own."""

    net: Net
    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        dim, each = self.net.dim, self.net.n_each
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        qk, v, z = self._projected(g, x)
        both = g.heads(g.matmul("beta_alpha", x), 2 * each)
        beta, alpha = g.apply(Unary.SIGMOID, g.rows(g.some(both, 0, each))), g.rows(g.some(both, each, each))
        decay = g.times(g.apply(Unary.SOFTPLUS, g.plus(alpha, "dt")), "decay")
        qk = g.heads(g.apply(Unary.SILU, g.causal_conv(qk, "kernels")), dim)
        v = g.heads(g.apply(Unary.SILU, g.causal_conv(v, "v_kernels", 2)), dim)
        n_keys = g.n_heads(qk) // 2
        q, k = (
            g.repeat_heads(_of_length_one(g, g.some_heads(qk, number * n_keys, n_keys), dim, self.rms_eps), each)
            for number in range(2)
        )
        made = g.rms_norm(g.delta_net(q, k, v, decay, beta), "out_norm", self.rms_eps)
        return g.matmul("out", g.rows(g.multiply(made, g.apply(Unary.SILU, g.heads(z, dim)))))

    def _projected(self, g: Steps[V], x: V) -> tuple[V, V, V]:
        """Queries and keys, values, gates."""
        if not g.has("qkvz"):
            return g.matmul("qk", x), g.matmul("v", x), g.matmul("z", x)
        dim, width = self.net.dim, self.net.n_each * self.net.dim
        all_of_key = g.heads(g.matmul("qkvz", x), 2 * dim + 2 * width)
        q, k = (g.rows(g.some(all_of_key, number * dim, dim)) for number in range(2))
        v, z = (g.rows(g.some(all_of_key, 2 * dim + number * width, width)) for number in range(2))
        return g.join(q, k), v, z


def _of_length_one(g: Steps[V], x: V, dim: int, rms_eps: float) -> V:
    """Every head of ``x``, which has ``dim`` values."""
    return g.scale(g.rms_norm(x, None, rms_eps / dim), inverse_root(dim))
