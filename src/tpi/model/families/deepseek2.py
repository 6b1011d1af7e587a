"""The ``deepseek2`` architecture: DeepSeek V2 and V3, and others with the same blocks (GLM 4.7 Flash, Kimi K2, Mistral
Large 3); and ``mistral4``, Mistral Small 4, whose factor of yarn is derived otherwise. Attention keeps one latent
vector for all heads (MLA), or in older files the heads made of it; behind the first layers FFNs are experts, with some
that every token uses."""

from dataclasses import dataclass
from math import inf

import numpy as np

from tpi.model.blocks import Block, Slot, measure_of
from tpi.model.common import Ffn, Head, Norm, ffn_block, output_head
from tpi.model.inputs import Model, ModelInputs
from tpi.model.metadata import Metadata
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_routing, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.states import KvState
from tpi.model.steps import Rope, RopeStyle, Steps, Temperature, V
from tpi.model.tensors import Tensors

NAMES = ("deepseek2", "mistral4")

_LOG_UNIT = 0.1
"""By what files have multiplied yarn's log multiplier."""
_GLM_LAYERS, _GLM_VOCAB = (47, 48), 154_880
"""Of a model whose files do not say that it gates by sigmoids."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling, or of choosing experts, that is not computed.
    """
    n_embd, found = dimensions.n_embd, list[Block]()
    eps, n_dense = meta.epsilon("attention.layer_norm_rms_epsilon"), meta.integer("leading_dense_block_count", 0)
    shape = _read_shape(meta, tensors)
    attention = _read_attention(meta, dimensions, shape, eps)
    state = KvState(shape.latent, shape.n_heads, shape.n_lora, is_latent=True)
    if shape.is_unsplit:
        state = KvState(shape.key, 1, shape.value)
    norm = Norm(eps)
    dense, routed = Ffn(norm), ExpertFfn(norm, _read_routing(meta, dimensions))
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        slots = _attention_slots(at, n_embd, shape, tensors)
        heads = measure_of("heads", shape.n_heads, 1, slots)
        found.append(Block(len(found), "attention", layer, (heads,), slots, attention, state))
        if layer < n_dense:
            n_ff = meta.each("feed_forward_length", dimensions.n_layers)[layer]
            meta.require(n_ff > 0, "feed_forward_length", n_ff)
            found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, dense))
        else:
            sizes = read_sizes(meta)
            n_shared = sizes.width * meta.positive("expert_shared_count")
            found.append(
                expert_block(len(found), layer, n_embd, sizes, tensors, routed, n_shared=n_shared, has_choice_bias=True)
            )
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    temperature = attention.temperature
    return Model(tuple(found), ModelInputs(temperatures=() if temperature is None else (temperature,)))


@dataclass(frozen=True)
class Shape:
    """Sizes of attention: of a head's key, turned part and value, of the latent vector that all heads share, and of the
    one that queries are made of, if they are (0: they are not)."""

    n_heads: int
    key: int
    turned: int
    value: int
    n_lora: int
    n_lora_q: int
    is_unsplit: bool
    """Keys and values are made of the latent vector by one matrix, and kept."""

    @property
    def plain(self) -> int:
        """The part of a key that is not turned."""
        return self.key - self.turned

    @property
    def latent(self) -> int:
        """What is kept of a token."""
        return self.n_lora + self.turned


def _read_shape(meta: Metadata, tensors: Tensors) -> Shape:
    is_unsplit = "blk.0.attn_kv_b.weight" in tensors
    suffix = "" if is_unsplit else "_mla"
    key, value = meta.positive(f"attention.key_length{suffix}"), meta.positive(f"attention.value_length{suffix}")
    turned = meta.positive("rope.dimension_count")
    meta.require(turned < key and turned % 2 == 0, "rope.dimension_count", turned)
    n_lora_q = meta.positive("attention.q_lora_rank") if "blk.0.attn_q_a.weight" in tensors else 0
    n_heads, n_lora = meta.sole("attention.head_count"), meta.positive("attention.kv_lora_rank")
    return Shape(n_heads, key, turned, value, n_lora, n_lora_q, is_unsplit)


def _read_attention(meta: Metadata, dimensions: Dimensions, shape: Shape, eps: float) -> "Attention":
    rope = read_rope(
        meta, shape.turned, dimensions.n_context_train, RopeStyle.NORMAL,
        is_log_doubled=meta.architecture == "deepseek2", log_unit=_LOG_UNIT,
    )  # fmt: skip
    log_mul = meta.number("rope.scaling.yarn_log_multiplier", 0.0)
    stretched = np.float32(1) / np.float32(rope.frequency_scale)
    growth = np.float32(0.1) * np.log(stretched)
    stretch = np.float32(rope.attention_factor) * (np.float32(1) + growth)
    stretch *= np.float32(1) + np.float32(log_mul) / np.float32(_LOG_UNIT) * growth
    scale = float(stretch * stretch / np.sqrt(np.float32(shape.key)))
    meta.require(0 < scale < inf, "rope.scaling.yarn_log_multiplier", log_mul)
    temperature, by = None, meta.number("attention.temperature_scale", 0.0)
    if by:
        temperature = Temperature(by, meta.positive("attention.temperature_length"))
    return Attention(shape, eps, rope, scale, temperature)


def _read_routing(meta: Metadata, dimensions: Dimensions) -> Routing:
    n_vocab = meta.integer("vocab_size", dimensions.n_vocab)
    is_glm = dimensions.n_layers in _GLM_LAYERS and n_vocab == _GLM_VOCAB
    return read_routing(meta, Gating.SIGMOID if is_glm else Gating.SOFTMAX)


def _attention_slots(at: str, n_embd: int, shape: Shape, tensors: Tensors) -> tuple[Slot, ...]:
    n, key, n_lora = shape.n_heads, shape.key, shape.n_lora
    if shape.n_lora_q:
        q: tuple[Slot, ...] = (
            tensors.matrix("q_a", at + "attn_q_a.weight", (n_embd, shape.n_lora_q)),
            tensors.copy("q_a_norm", at + "attn_q_a_norm.weight", shape.n_lora_q),
            tensors.rows("q", at + "attn_q_b.weight", (shape.n_lora_q, n * key), key),
        )
    else:
        q = (tensors.rows("q", at + "attn_q.weight", (n_embd, n * key), key),)
    if shape.is_unsplit:
        each = shape.plain + shape.value
        made: tuple[Slot, ...] = (tensors.rows("kv", at + "attn_kv_b.weight", (n_lora, n * each), each),)
    else:
        made = (
            tensors.matrices("k", at + "attn_k_b.weight", (shape.plain, n * n_lora), n_lora),
            tensors.matrices("v", at + "attn_v_b.weight", (n_lora, n * shape.value), shape.value),
        )
    return (
        tensors.copy("norm", at + "attn_norm.weight", n_embd),
        *q,
        tensors.matrix("kv_a", at + "attn_kv_a_mqa.weight", (n_embd, shape.latent)),
        tensors.copy("kv_a_norm", at + "attn_kv_a_norm.weight", n_lora),
        *made,
        tensors.columns("o", at + "attn_output.weight", (n * shape.value, n_embd), shape.value),
    )


@dataclass(frozen=True)
class Attention:
    """Queries look at the latent vectors themselves: what makes keys of them is applied to the queries, and what makes
    values to the result. Part of a key is turned, and the same for all heads."""

    shape: Shape
    rms_eps: float
    rope: Rope
    scale: float
    temperature: Temperature | None

    def build(self, g: Steps[V]) -> V:
        shape = self.shape
        x = g.rms_norm(g.residual(), "norm", self.rms_eps)
        q = x
        if g.has("q_a"):
            q = g.rms_norm(g.matmul("q_a", x), "q_a_norm", self.rms_eps)
        q = g.heads(g.matmul("q", q), shape.key)
        latent = g.matmul("kv_a", x)
        k_turned = self._turn(g, g.some(latent, shape.n_lora, shape.turned))
        latent = g.rms_norm(g.some(latent, 0, shape.n_lora), "kv_a_norm", self.rms_eps)
        q_plain, q_turned = g.some(q, 0, shape.plain), self._turn(g, g.some(q, shape.plain, shape.turned))
        if shape.is_unsplit:
            return self._unsplit(g, g.join(q_plain, q_turned), k_turned, latent)
        q = self._temper(g, g.join(g.matmul_heads("k", q_plain), q_turned))
        k = g.join(g.heads(latent, shape.n_lora), k_turned)
        attended = g.matmul_heads("v", g.attention(q, k, None, self.scale))
        return g.matmul("o", g.rows(attended))

    def _unsplit(self, g: Steps[V], q: V, k_turned: V, latent: V) -> V:
        kv = g.heads(g.matmul("kv", latent), self.shape.plain + self.shape.value)
        k = g.join(g.some(kv, 0, self.shape.plain), g.repeat_head(k_turned, kv))
        v = g.some(kv, self.shape.plain, self.shape.value)
        return g.matmul("o", g.rows(g.attention(self._temper(g, q), k, v, self.scale)))

    def _turn(self, g: Steps[V], x: V) -> V:
        return g.rope(x, self.rope, self.shape.turned)

    def _temper(self, g: Steps[V], q: V) -> V:
        return q if self.temperature is None else g.tempered(q, self.temperature)
