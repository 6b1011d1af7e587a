"""The ``gemma4`` architecture: Gemma 4, dense, with experts, and E2B and E4B, whose last layers look at keys and values
of earlier ones and whose layers get values of their own for every token. Sums are normed before they are added."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from tpi.model.blocks import OWN, Block, Measure, Slot, aligned_columns, measure_of
from tpi.model.common import FFN_UNIT_COLUMNS, Head, Norm, PostNorm, after_sum, output_head
from tpi.model.inputs import Model, ModelInputs
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root, root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertSizes, GatedExpert, Gating, Routing, gated_experts, read_sizes
from tpi.model.spans import Span
from tpi.model.spec import Dimensions
from tpi.model.states import KvState
from tpi.model.steps import Activation, Rope, RopeStyle, Steps, Unary, V
from tpi.model.tensors import Tensors

NAMES = ("gemma4",)

_USUAL_CAP = 30.0
_COLUMNS = 1
"""Number of the measure of a layer's dense network where it has experts, too."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    shapes, eps = _read_shapes(meta, dimensions, tensors), meta.epsilon("attention.layer_norm_rms_epsilon")
    n_extra = meta.integer("embedding_length_per_layer_input", 0)
    attentions = [_attention(shape, dimensions, tensors, eps) for shape in shapes]
    found: list[Block] = []
    for shape in shapes:
        slots, graph = attentions[shape.layer]
        measures = (_heads_measure(shape, [attentions[other.layer][0] for other in shapes if _share(shape, other)]),)
        is_source = shape.source == shape.layer
        found.append(
            Block(
                len(found), "attention", shape.layer, measures, slots, graph, is_kept=True,
                state=shape.state if is_source else None,
                reads_state_of=None if is_source else 4 * shape.source,
            )
        )  # fmt: skip
        found.append(after_sum(len(found), "attention", shape.layer, dimensions.n_embd, tensors, PostNorm(Norm(eps))))
        found.append(_ffn(len(found), shape, meta, dimensions.n_embd, tensors, eps))
        found.append(_after_ffn(len(found), shape, dimensions, n_extra, tensors, eps))
    cap = meta.number("final_logit_softcapping", _USUAL_CAP)
    meta.require(cap >= 0, "final_logit_softcapping", cap)
    found.append(output_head(len(found), dimensions, tensors, Head(Norm(eps), cap=cap)))
    inputs = ModelInputs(root(dimensions.n_embd))
    if n_extra:
        table = tensors.find("per_layer_token_embd.weight")
        shape_found = table.n_columns, table.n_rows
        meta.require(shape_found == (n_extra * dimensions.n_layers, dimensions.n_vocab), table.name, shape_found)
        inputs = ModelInputs(root(dimensions.n_embd), table, root(n_extra))
    return Model(tuple(found), inputs)


@dataclass(frozen=True)
class LayerShape:
    """What differs between layers. ``source``: the layer whose keys and values this one looks at."""

    layer: int
    n_heads: int
    state: KvState
    source: int
    n_ff: int
    rope: Rope
    has_factors: bool
    has_values: bool


def _read_shapes(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> list[LayerShape]:
    n_layers = dimensions.n_layers
    windows = meta.windows(n_layers, 0)
    n_heads = meta.each("attention.head_count", n_layers)
    n_kv = meta.each("attention.head_count_kv", n_layers, n_heads[0])
    n_ff = meta.each("feed_forward_length", n_layers)
    n_shared = meta.integer("attention.shared_kv_layers", 0)
    n_own = n_layers - n_shared
    meta.require(n_own >= (2 if n_shared else 0), "attention.shared_kv_layers", n_shared)
    found: list[LayerShape] = []
    for layer, window in enumerate(windows):
        suffix = "_swa" if window else ""
        dim = meta.positive(f"attention.key_length{suffix}")
        meta.require(dim % 2 == 0 and meta.positive(f"attention.value_length{suffix}") == dim, "head sizes", dim)
        n, kv = n_heads[layer], n_kv[layer]
        meta.require(0 < kv <= n and n % kv == 0, "attention.head_count_kv", kv)
        meta.require(n_ff[layer] > 0, "feed_forward_length", n_ff[layer])
        source = layer if layer < n_own else n_own - (2 if window else 1)
        state = KvState(dim, n // kv, dim, window)
        if source != layer:
            meta.require(
                (n, state) == (found[source].n_heads, found[source].state), "attention.shared_kv_layers", layer
            )
        rope = read_rope(meta, dim, dimensions.n_context_train, RopeStyle.NEOX, suffix=suffix)
        has_values = f"blk.{layer}.attn_v.weight" in tensors
        found.append(LayerShape(layer, n, state, source, n_ff[layer], rope, not window, has_values))
    return found


def _share(one: LayerShape, other: LayerShape) -> bool:
    return one.source == other.source


def _heads_measure(shape: LayerShape, sharing: Sequence[tuple[Slot, ...]]) -> Measure:
    """Layers that look at the same keys are cut alike."""
    aligned = lcm(*(aligned_columns(slots) for slots in sharing))
    return Measure("heads", shape.n_heads, lcm(shape.state.group, aligned), aligned)


def _attention(
    shape: LayerShape, dimensions: Dimensions, tensors: Tensors, eps: float
) -> tuple[tuple[Slot, ...], "Attention"]:
    at, n_embd, state = f"blk.{shape.layer}.", dimensions.n_embd, shape.state
    dim, group, n = state.head_dim, state.group, shape.n_heads
    n_kv = n // group
    q = (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        tensors.rows("q", at + "attn_q.weight", (n_embd, n * dim), dim),
        tensors.copy("q_norm", at + "attn_q_norm.weight", dim),
    )
    factors = (tensors.copy("factors", "rope_freqs.weight", dim // 2),) if shape.has_factors else ()
    o = tensors.columns("o", at + "attn_output.weight", (n * dim, n_embd), dim)
    graph = Attention(dim, eps, shape.rope, shape.has_factors, shape.source == shape.layer)
    if shape.source != shape.layer:
        tensors.skip(at + "attn_k")
        tensors.skip(at + "attn_v.")
        return (*q, *factors, o), graph
    kv = (n_embd, n_kv * dim)
    k = (
        tensors.rows("k", at + "attn_k.weight", kv, dim, group),
        tensors.copy("k_norm", at + "attn_k_norm.weight", dim),
    )
    v = (tensors.rows("v", at + "attn_v.weight", kv, dim, group),) if shape.has_values else ()
    return (*q, *k, *factors, *v, o), graph


def _ffn(index: int, shape: LayerShape, meta: Metadata, n_embd: int, tensors: Tensors, eps: float) -> Block:
    at, n_ff = f"blk.{shape.layer}.", shape.n_ff
    has_experts = at + "ffn_gate_inp.weight" in tensors
    number = _COLUMNS if has_experts else 0
    dense = (
        tensors.copy("norm", at + "ffn_norm.weight", n_embd),
        tensors.rows("gate", at + "ffn_gate.weight", (n_embd, n_ff), measure=number),
        tensors.rows("up", at + "ffn_up.weight", (n_embd, n_ff), measure=number),
        tensors.columns("down", at + "ffn_down.weight", (n_ff, n_embd), measure=number),
    )
    columns = measure_of("columns", n_ff, FFN_UNIT_COLUMNS, dense, number=number)
    if not has_experts:
        return Block(index, "ffn", shape.layer, (columns,), dense, Ffn(eps), is_kept=True)
    sizes: ExpertSizes = read_sizes(meta)
    experts = gated_experts(at, n_embd, sizes, tensors, GatedExpert(Activation.GEGLU))
    slots = (
        tensors.copy("router_scale", at + "ffn_gate_inp.scale", n_embd),
        tensors.matrix("router", at + "ffn_gate_inp.weight", (n_embd, sizes.n)),
        tensors.copy("experts_norm", at + "pre_ffw_norm_2.weight", n_embd),
        *dense,
    )
    graph = DenseAndExperts(eps, inverse_root(n_embd), Routing(Gating.SOFTMAX, is_normalised=True))
    measures = (experts.whole(), columns)
    return Block(index, "ffn", shape.layer, measures, slots, graph, experts=experts, n_vectors=2, is_kept=True)


def _after_ffn(
    index: int, shape: LayerShape, dimensions: Dimensions, n_extra: int, tensors: Tensors, eps: float
) -> Block:
    at, n_embd, layer = f"blk.{shape.layer}.", dimensions.n_embd, shape.layer
    has_experts, scale = at + "ffn_gate_inp.weight" in tensors, at + "layer_output_scale.weight"
    slots: list[Slot] = []
    if has_experts:
        slots.append(tensors.copy("dense_norm", at + "post_ffw_norm_1.weight", n_embd))
        slots.append(tensors.copy("experts_norm", at + "post_ffw_norm_2.weight", n_embd))
    slots.append(tensors.copy("post_norm", at + "post_ffw_norm.weight", n_embd))
    extra = None
    if n_extra:
        rows = Span(layer * n_extra, (layer + 1) * n_extra)
        all_rows = (n_embd, n_extra * dimensions.n_layers)
        slots.append(tensors.matrix("model_proj", "per_layer_model_proj.weight", all_rows, rows))
        slots.append(tensors.copy("proj_norm", "per_layer_proj_norm.weight", n_extra))
        slots.append(tensors.matrix("input_gate", at + "inp_gate.weight", (n_embd, n_extra)))
        slots.append(tensors.matrix("proj", at + "proj.weight", (n_extra, n_embd)))
        slots.append(tensors.copy("extra_norm", at + "post_norm.weight", n_embd))
        extra = Extra(layer * n_extra, n_extra, inverse_root(n_embd))
    if scale in tensors:
        slots.append(tensors.copy("out_scale", scale, 1))
    return Block(index, "after ffn", layer, OWN, tuple(slots), AfterFfn(eps, has_experts, extra), is_own=True)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with normed heads; keys and values of its own, or of an earlier layer. Values are normed
    as well, and where they have no matrix they are the keys before norm and rope. Scores are not scaled."""

    head_dim: int
    rms_eps: float
    rope: Rope
    has_factors: bool
    has_keys: bool

    def build(self, g: Steps[V]) -> V:
        dim, eps = self.head_dim, self.rms_eps
        factors = "factors" if self.has_factors else None
        x = g.rms_norm(g.residual(), "norm", eps)
        q = g.rms_norm(g.heads(g.matmul("q", x), dim), "q_norm", eps)
        if not self.has_keys:
            q = g.rope(q, self.rope, dim, factors)
            return g.matmul("o", g.rows(g.attention_again(q, 1.0)))
        plain = g.heads(g.matmul("k", x), dim)
        k = g.rms_norm(plain, "k_norm", eps)
        q, k = g.rope(q, self.rope, dim, factors), g.rope(k, self.rope, dim, factors)
        v = g.rms_norm(g.heads(g.matmul("v", x), dim) if g.has("v") else plain, None, eps)
        return g.matmul("o", g.rows(g.attention(q, k, v, 1.0)))


@dataclass(frozen=True)
class Ffn:
    """A gated network."""

    rms_eps: float

    def build(self, g: Steps[V]) -> V:
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        gate = g.matmul("gate", x)
        return g.matmul("down", g.gated(Activation.GEGLU, gate, g.matmul("up", x)))


@dataclass(frozen=True)
class DenseAndExperts:
    """A gated network, and experts that are chosen by the stream itself; summed apart."""

    rms_eps: float
    router_scale: float
    routing: Routing

    def build(self, g: Steps[V]) -> V:
        stream, eps = g.residual(), self.rms_eps
        scaled = g.times(g.scale(g.rms_norm(stream, None, eps), self.router_scale), "router_scale")
        scores = g.matmul("router", scaled)
        experts = self.routing.build(g, scores, g.rms_norm(stream, "experts_norm", eps))
        if not g.has("gate"):
            return g.join(g.scale(stream, 0.0), experts)
        x = g.rms_norm(stream, "norm", eps)
        gate = g.matmul("gate", x)
        return g.join(g.matmul("down", g.gated(Activation.GEGLU, gate, g.matmul("up", x))), experts)


@dataclass(frozen=True)
class Extra:
    """A layer's own values of every token: where they begin among those that were looked up, how many, and by what
    those made of the embedding are multiplied before the two are averaged."""

    first: int
    width: int
    scale: float


@dataclass(frozen=True)
class AfterFfn:
    """Sums are normed, then added to the stream, which a layer's own values may then steer."""

    rms_eps: float
    has_experts: bool
    extra: Extra | None

    def build(self, g: Steps[V]) -> V:
        eps = self.rms_eps
        x = g.summed()
        if self.has_experts:
            x = g.add(g.rms_norm(x, "dense_norm", eps), g.rms_norm(g.summed(1), "experts_norm", eps))
        x = g.add(g.rms_norm(x, "post_norm", eps), g.residual())
        if self.extra is not None:
            x = g.add(x, self._steer(g, x, self.extra))
        return g.times(x, "out_scale") if g.has("out_scale") else x

    def _steer(self, g: Steps[V], x: V, extra: Extra) -> V:
        made = g.scale(g.matmul("model_proj", g.embeddings()), extra.scale)
        made = g.rms_norm(made, "proj_norm", self.rms_eps)
        own = g.scale(g.add(made, g.looked_up(extra.first, extra.width)), inverse_root(2))
        gated = g.multiply(g.apply(Unary.GELU, g.matmul("input_gate", x)), own)
        return g.rms_norm(g.matmul("proj", gated), "extra_norm", self.rms_eps)
