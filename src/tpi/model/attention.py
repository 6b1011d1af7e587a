"""Attention as most architectures have it: grouped queries, each of whose details a block has or has not."""

from dataclasses import dataclass, replace
from enum import Enum

from tpi.model.blocks import Block, Slot, measure_of
from tpi.model.common import FFN_UNIT_COLUMNS, Norm, feed_forward, ffn_slots, norm_slots
from tpi.model.heads import Heads
from tpi.model.rope import factors_role
from tpi.model.states import FULL
from tpi.model.steps import Activation, Rope, Steps, Temperature, Unary, V
from tpi.model.tensors import Tensors, bias_of

_COLUMNS = 1
"""Number of the measure of a network that is summed with attention; heads are the first."""


class HeadNorms(Enum):
    """Whether queries and keys are normed head by head: all heads by the same weights, or each by its own."""

    NONE = 1
    ALIKE = 2
    APART = 3


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention. Roles that the block may lack: ``attn_norm`` (it then looks at the stream as it is),
    biases of the four products, ``q_norm`` and ``k_norm``, factors of the rotary embedding, ``sinks``."""

    head_dim: int
    norm: Norm
    rope: Rope | None
    """None: heads are not turned."""
    scale: float
    """Of scores."""
    softcap: float = 0.0
    head_norm: Norm | None = None
    """How queries and keys are normed, if they are; None: as the stream."""
    is_normed_late: bool = False
    """They are normed after they were turned."""
    temperature: Temperature | None = None
    """By which queries are multiplied after they were turned."""
    is_query_scaled: bool = False
    """Queries are multiplied by ``scale``, not scores."""
    out_scale: float = 1.0
    """By which the result is multiplied."""

    def build(self, g: Steps[V]) -> V:
        return self.attend(g, self.norm.build(g, g.residual(), "attn_norm"))

    def attend(self, g: Steps[V], x: V) -> V:
        """What is made of the normed stream."""
        q, k = self._heads(g, "q", x), self._heads(g, "k", x)
        q, k = self._turned(g, "q", q), self._turned(g, "k", k)
        if self.temperature is not None:
            q = g.tempered(q, self.temperature)
        q, scale = (g.scale(q, self.scale), 1.0) if self.is_query_scaled else (q, self.scale)
        v, sinks = g.biased("v", x), "sinks" if g.has("sinks") else None
        made = g.biased("o", g.rows(g.attention(q, k, v, scale, sinks, self.softcap)))
        return g.scale(made, self.out_scale)

    def _heads(self, g: Steps[V], role: str, x: V) -> V:
        made = g.heads(g.biased(role, x), self.head_dim)
        return made if self.is_normed_late else self._normed(g, role, made)

    def _turned(self, g: Steps[V], role: str, x: V) -> V:
        if self.rope is not None:
            x = g.rope(x, self.rope, self.head_dim, factors_role(g, self.rope))
        return self._normed(g, role, x) if self.is_normed_late else x

    def _normed(self, g: Steps[V], role: str, x: V) -> V:
        return (self.head_norm or self.norm).build(g, x, f"{role}_norm")


def attention_block(
    index: int,
    layer: int,
    heads: Heads,
    n_embd: int,
    tensors: Tensors,
    graph: Attention,
    *,
    window: int = FULL,
    head_norms: HeadNorms = HeadNorms.NONE,
    factors: tuple[Slot, ...] = (),
    norm: str | None = "attn_norm",
    may_have_out_bias: bool = False,
    has_sinks: bool = False,
    is_kept: bool = False,
) -> Block:
    """The block of ``graph``. Biases of queries, keys and values are taken where the file has them, as llama.cpp does
    for all architectures; ``may_have_out_bias``: that of the output, too. ``norm``: what files call the norm before;
    ``factors``: of the rotary embedding.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    at = f"blk.{layer}."
    slots = (
        *(norm_slots(tensors, "attn_norm", f"{at}{norm}", n_embd, graph.norm) if norm else ()),
        *attention_slots(at, heads, n_embd, tensors, head_norms=head_norms, factors=factors, has_sinks=has_sinks),
        *out_slots(at, heads, n_embd, tensors, may_have_bias=may_have_out_bias),
    )
    state = replace(heads.state_of(window), has_sinks=has_sinks)
    return Block(index, "attention", layer, (heads.measure(slots),), slots, graph, state, is_kept=is_kept)


def attention_slots(
    at: str,
    heads: Heads,
    n_embd: int,
    tensors: Tensors,
    *,
    head_norms: HeadNorms = HeadNorms.NONE,
    factors: tuple[Slot, ...] = (),
    has_sinks: bool = False,
) -> tuple[Slot, ...]:
    """What attention needs between the norm before it and its output; see :func:`attention_block`."""
    slots = {slot.role: slot for slot in heads.products(tensors, at, n_embd)}
    found = list[Slot]()
    for role, n_heads, group in (("q", heads.n, 1), ("k", heads.n_kv, heads.group), ("v", heads.n_kv, heads.group)):
        found += [slots[of] for of in (role, bias_of(role)) if of in slots]
        name = f"{at}attn_{role}_norm.weight"
        if role != "v" and head_norms is HeadNorms.ALIKE:
            found.append(tensors.copy(f"{role}_norm", name, heads.dim))
        elif role != "v" and head_norms is HeadNorms.APART:
            found.append(tensors.vectors(f"{role}_norm", name, (heads.dim, n_heads), group=group))
        if role == "k":
            found += factors
    if has_sinks:
        found.append(tensors.values("sinks", at + "attn_sinks.weight", heads.n))
    return tuple(found)


def out_slots(at: str, heads: Heads, n_embd: int, tensors: Tensors, *, may_have_bias: bool = False) -> tuple[Slot, ...]:
    """The matrix of attention's output, and its bias."""
    o = tensors.columns("o", at + "attn_output.weight", (heads.n * heads.dim, n_embd), heads.dim)
    name = at + "attn_output.bias"
    bias = (tensors.first("o_bias", name, (n_embd, 1)),) if may_have_bias and name in tensors else ()
    return (o, *bias)


@dataclass(frozen=True)
class SideBySide:
    """Attention and a feed-forward network that look at the same normed stream. A rank may have a part of one alone."""

    attention: Attention
    activation: Activation | Unary = Activation.SWIGLU

    def build(self, g: Steps[V]) -> V:
        x = self.attention.norm.build(g, g.residual(), "attn_norm")
        attended = self.attention.attend(g, x) if g.has("q") else None
        if not g.has("down"):
            assert attended is not None, "a rank that holds nothing of a block does not build it"
            return attended
        made = feed_forward(g, x, self.activation)
        return made if attended is None else g.add(made, attended)


def side_by_side(
    index: int,
    layer: int,
    heads: Heads,
    n_embd: int,
    n_ff: int,
    tensors: Tensors,
    graph: SideBySide,
    *,
    window: int = FULL,
    head_norms: HeadNorms = HeadNorms.NONE,
) -> Block:
    """A whole layer as one block, cut by its heads and by the network's columns.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    at = f"blk.{layer}."
    slots = (
        *norm_slots(tensors, "attn_norm", at + "attn_norm", n_embd, graph.attention.norm),
        *attention_slots(at, heads, n_embd, tensors, head_norms=head_norms),
        *out_slots(at, heads, n_embd, tensors),
        *ffn_slots(at, n_embd, n_ff, tensors, graph.activation, measure=_COLUMNS),
    )
    measures = heads.measure(slots), measure_of("columns", n_ff, FFN_UNIT_COLUMNS, slots, number=_COLUMNS)
    return Block(index, "layer", layer, measures, slots, graph, heads.state_of(window))
