"""Mamba-2 as a block, or two where all heads are normed at once (Dao & Gu 2024): a selective state space whose decay is
one number for every head; heads of a group share what writes to the state and what reads from it."""

from dataclasses import dataclass

from tpi.model.blocks import Block, Leavings, Slot, measure_of
from tpi.model.common import Norm, norm_slots
from tpi.model.metadata import Metadata
from tpi.model.spans import Span
from tpi.model.states import RecurrentState
from tpi.model.steps import Activation, Steps, Unary, V
from tpi.model.tensors import Tensors, bias_of

_CONVOLVED = ("x", "write", "read")
"""What goes through the convolution: parts 0 to 2 of the state."""
_STATE = 3
"""The number of the part that is the state proper."""


@dataclass(frozen=True)
class Mamba:
    """``n`` heads of ``dim`` values in ``n_groups`` groups; ``n_state`` values are kept for each; a kernel looks at
    ``n_kernel`` tokens."""

    n: int
    dim: int
    n_groups: int
    n_state: int
    n_kernel: int

    @property
    def group(self) -> int:
        """Heads of a group."""
        return self.n // self.n_groups

    @property
    def n_values(self) -> int:
        """Of all heads."""
        return self.n * self.dim

    @property
    def state(self) -> RecurrentState:
        """The rows before that a kernel looks at, and a matrix for every head."""
        before, n_state = self.n_kernel - 1, self.n_state
        parts = before * self.dim, 0, 0, self.dim * n_state
        return RecurrentState(parts, (0, before * n_state, before * n_state, 0), self.group)


def read_mamba(meta: Metadata) -> Mamba:
    """Raises:
    ModelFileError: an entry is missing or impossible.
    """
    n, n_groups, n_inner = meta.positive("ssm.time_step_rank"), meta.positive("ssm.group_count"), "ssm.inner_size"
    n_values, n_kernel = meta.positive(n_inner), meta.positive("ssm.conv_kernel")
    meta.require(n_values % n == 0, n_inner, n_values)
    meta.require(n % n_groups == 0, "ssm.group_count", n_groups)
    meta.require(2 <= n_kernel <= 64, "ssm.conv_kernel", n_kernel)
    return Mamba(n, n_values // n, n_groups, meta.positive("ssm.state_size"), n_kernel)


def mamba_blocks(
    index: int,
    layer: int,
    n_embd: int,
    mamba: Mamba,
    tensors: Tensors,
    norm: Norm,
    out_scale: float = 1.0,
    *,
    is_normed: bool = True,
    is_kept: bool = False,
) -> tuple[Block, ...]:
    """The blocks of a layer, from number ``index`` on. One group is cut between its heads, and all ranks sum the
    squares that its norm needs, if what is made ``is_normed``; several are cut between them.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    at = f"blk.{layer}."
    first = (*norm_slots(tensors, "norm", at + "attn_norm", n_embd, norm), *_slots(at, n_embd, mamba, tensors))
    out = tensors.columns("out", at + "ssm_out.weight", (mamba.n_values, n_embd), mamba.dim)
    name, shape = at + "ssm_norm.weight", (mamba.n_values // mamba.n_groups, mamba.n_groups)
    if mamba.n_groups > 1 or not is_normed:
        out_norm = (tensors.vectors("out_norm", name, shape, group=mamba.group),) if is_normed else ()
        slots = (*first, *out_norm, out)
        measures = (measure_of("heads", mamba.n, mamba.group if mamba.n_groups > 1 else 1, slots),)
        graph = Groups(Scan(mamba, norm), out_scale)
        return (Block(index, "recurrence", layer, measures, slots, graph, mamba.state, is_kept=is_kept),)
    last = (tensors.values("out_norm", name, mamba.n_values, mamba.dim), out)
    measures = (measure_of("heads", mamba.n, 1, last),)
    leavings = Leavings(1, ((mamba.dim, 1),))
    return (
        Block(
            index, "scan", layer, measures, first, AllHeads(Scan(mamba, norm)), mamba.state,
            is_kept=True, leaves=leavings,
        ),
        Block(
            index + 1, "recurrence", layer, measures, last, Out(mamba.n_values, norm.eps, out_scale), is_kept=is_kept
        ),
    )  # fmt: skip


def _slots(at: str, n_embd: int, mamba: Mamba, tensors: Tensors) -> tuple[Slot, ...]:
    dim, n_state, group, n_values = mamba.dim, mamba.n_state, mamba.group, mamba.n_values
    n_shared = mamba.n_groups * n_state
    n_all = 2 * n_values + 2 * n_shared + mamba.n
    places = ((n_values, dim, 1), (n_shared, n_state, group), (n_shared, n_state, group))
    found, start = [_rows(tensors, at, "z", (n_embd, n_all), Span(0, n_values), dim, 1)], n_values
    for role, (n_rows, step, of) in zip(_CONVOLVED, places, strict=True):
        found.append(_rows(tensors, at, role, (n_embd, n_all), Span(start, start + n_rows), step, of))
        start += n_rows
    found.append(_rows(tensors, at, "dt", (n_embd, n_all), Span(start, n_all), 1, 1))
    found.append(tensors.values(bias_of("dt"), at + "ssm_dt.bias", mamba.n))
    kernels, n_convolved, start = at + "ssm_conv1d", n_values + 2 * n_shared, 0
    for role, (n_rows, step, of) in zip(_CONVOLVED, places, strict=True):
        shape = mamba.n_kernel, n_convolved
        found.append(tensors.vectors(f"{role}_kernels", f"{kernels}.weight", shape, step, of, (start,)))
        if f"{kernels}.bias" in tensors:
            name = bias_of(f"{role}_kernels")
            found.append(tensors.values(name, f"{kernels}.bias", n_convolved, step, of, (start,)))
        start += n_rows
    found.append(tensors.vectors("decay", at + "ssm_a", (1, mamba.n)))
    found.append(tensors.vectors("skip", at + "ssm_d", (1, mamba.n)))
    return tuple(found)


def _rows(tensors: Tensors, at: str, role: str, shape: tuple[int, int], rows: Span, step: int, group: int) -> Slot:
    return tensors.rows(role, at + "ssm_in.weight", shape, step, group, rows=rows)


@dataclass(frozen=True)
class Scan:
    """Gated heads, before they are normed."""

    mamba: Mamba
    norm: Norm

    def build(self, g: Steps[V]) -> V:
        mamba = self.mamba
        x = self.norm.build(g, g.residual(), "norm")
        z, rows = g.matmul("z", x), [g.matmul(role, x) for role in _CONVOLVED]
        dt = g.biased("dt", x)
        inner, write, read = (self._convolved(g, made, part) for part, made in enumerate(rows))
        inner, write, read = g.heads(inner, mamba.dim), g.heads(write, mamba.n_state), g.heads(read, mamba.n_state)
        made = g.add(g.state_space(inner, dt, "decay", write, read, _STATE), g.times(inner, "skip"))
        return g.gated(Activation.SWIGLU, g.heads(z, mamba.dim), made)

    def _convolved(self, g: Steps[V], x: V, part: int) -> V:
        role = f"{_CONVOLVED[part]}_kernels"
        made, bias = g.causal_conv(x, role, part), bias_of(role)
        return g.apply(Unary.SILU, g.plus(made, bias) if g.has(bias) else made)


@dataclass(frozen=True)
class AllHeads:
    """Heads, and the sum of their squares."""

    scan: Scan

    def build(self, g: Steps[V]) -> V:
        made = g.rows(self.scan.build(g))
        return g.join(g.square_sums(made), made)


@dataclass(frozen=True)
class Out:
    """What ``AllHeads`` has left, normed over all ranks' heads."""

    n: int
    eps: float
    out_scale: float

    def build(self, g: Steps[V]) -> V:
        normed = g.rms_scaled(g.left(0), g.some(g.left_sums(), 0, 1), self.n, self.eps, "out_norm")
        made = g.matmul("out", normed)
        return g.scale(made, self.out_scale)


@dataclass(frozen=True)
class Groups:
    """Each group is normed for itself, if there are weights for that."""

    scan: Scan
    out_scale: float

    def build(self, g: Steps[V]) -> V:
        mamba = self.scan.mamba
        made = g.rows(self.scan.build(g))
        if g.has("out_norm"):
            made = g.rows(g.rms_norm(g.heads(made, mamba.group * mamba.dim), "out_norm", self.scan.norm.eps))
        made = g.matmul("out", made)
        return g.scale(made, self.out_scale)
