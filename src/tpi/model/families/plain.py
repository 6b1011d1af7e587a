"""Architectures whose layers are attention and a feed-forward network, or experts, both of the normed stream: each is a
row of a table. Granite's are multiplied by numbers of the file's on their way."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from tpi.errors import UnsupportedModelError
from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model, ModelInputs
from tpi.model.mamba import mamba_blocks, read_mamba
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse, inverse_root
from tpi.model.rope import factors_slots, inputs_with_factors, read_rope
from tpi.model.routing import ExpertFfn, ExpertSizes, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, RopeStyle, Temperature, Unary
from tpi.model.tensors import Tensors


class Width(Enum):
    """How wide an expert is: as a dense network; as the file says; or, if that is silent, so that those of a token are
    together as wide as a dense network."""

    NONE = 0
    DENSE = 1
    TOLD = 2
    MAY_BE_TOLD = 3


@dataclass(frozen=True)
class Details:
    """What differs."""

    style: RopeStyle
    head_norms: HeadNorms = HeadNorms.NONE
    is_normed_late: bool = False
    has_factors: bool = False
    """There may be factors of the rotary embedding."""
    has_out_bias: bool = False
    """Attention's output may have one."""
    has_head_bias: bool = False
    """The head may."""
    has_ffn_biases: bool = False
    """The network's matrices may have some."""
    ffn_norm: str = "ffn_norm"
    activation: Activation | Unary = Activation.SWIGLU
    unturned: int = 0
    """Of so many layers the last one's heads are not turned; 0: of all they are."""
    is_scaled: bool = False
    """The stream, scores, what layers add and logits are multiplied by numbers."""
    is_tempered: bool = False
    """Queries may be multiplied by a factor that grows with the position."""
    is_hybrid: bool = False
    """Layers that the file gives no KV heads are recurrent (Mamba-2)."""
    experts: Width = Width.NONE
    may_share: bool = False
    """Of the experts every token may use some, whose width the file tells;"""
    has_shared: bool = False
    """it does use some, together as wide as a dense network if the file does not say how wide."""
    is_normalised: bool = True
    """The weights of a token's experts are."""


_NEOX, _NORMAL, _ALIKE = RopeStyle.NEOX, RopeStyle.NORMAL, HeadNorms.ALIKE
_LLAMA = Details(_NORMAL, has_factors=True, has_out_bias=True, has_ffn_biases=True, experts=Width.DENSE)
_GRANITE = Details(_NORMAL, has_factors=True, has_out_bias=True, has_ffn_biases=True, is_scaled=True, may_share=True)
_HUNYUAN = Details(_NEOX, _ALIKE, is_normed_late=True)
_DETAILS: Mapping[str, Details] = {
    "arcee": Details(_NORMAL, has_factors=True, activation=Unary.SQUARED_RELU),
    "ernie4_5": Details(_NORMAL),
    "ernie4_5-moe": Details(_NORMAL, experts=Width.TOLD, may_share=True),
    "granite": _GRANITE,
    "granitehybrid": replace(_GRANITE, experts=Width.DENSE, is_hybrid=True),
    "granitemoe": replace(_GRANITE, experts=Width.DENSE),
    "hunyuan-dense": _HUNYUAN,
    "hunyuan-moe": replace(_HUNYUAN, experts=Width.DENSE, may_share=True, has_shared=True),
    "internlm2": Details(_NORMAL),
    "llama": _LLAMA,
    "mistral3": replace(_LLAMA, is_tempered=True),
    "qwen2": Details(_NEOX, has_head_bias=True),
    "qwen2moe": Details(_NEOX, experts=Width.MAY_BE_TOLD, may_share=True, has_shared=True, is_normalised=False),
    "qwen3": Details(_NEOX, _ALIKE),
    "qwen3moe": Details(_NEOX, _ALIKE, experts=Width.MAY_BE_TOLD),
    "seed_oss": Details(_NEOX, ffn_norm="post_attention_norm"),
    "smollm3": Details(_NORMAL, unturned=4),
}
NAMES = tuple(_DETAILS)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling, or of experts, that is not computed.
    """
    details, found = _DETAILS[meta.architecture], list[Block]()
    n_embd, norm, factor = dimensions.n_embd, read_norm(meta), _Factors()
    n_kv = _read_kv_heads(meta, dimensions, details)
    heads, mamba = read_heads(meta, dimensions, max(n_kv)), read_mamba(meta) if 0 in n_kv else None
    if details.is_scaled:
        factor = _read_factors(meta, details)
    attention = _read_attention(meta, dimensions, heads, details, factor)
    sizes = _read_experts(meta, details) if meta.integer("expert_count", 0) else None
    n_dense = 0 if sizes else dimensions.n_layers
    if sizes and details.experts is Width.TOLD:
        n_dense = meta.integer("leading_dense_block_count", 0)
    n_shared = _read_shared(meta, details)
    routing = Routing(Gating.SOFTMAX, details.is_normalised, 1.0, *read_groups(meta))
    ffn, routed = Ffn(norm, details.activation, factor.added), ExpertFfn(norm, routing, out_scale=factor.added)
    factors = factors_slots(tensors, attention.rope) if details.has_factors and attention.rope else ()
    for layer in range(dimensions.n_layers):
        is_turned = not details.unturned or (layer + 1) % details.unturned != 0
        graph = attention if is_turned else replace(attention, rope=None)
        if mamba is not None and not n_kv[layer]:
            found += mamba_blocks(len(found), layer, n_embd, mamba, tensors, norm, factor.added)
        else:
            found.append(
                attention_block(
                    len(found), layer, heads, n_embd, tensors, graph,
                    head_norms=details.head_norms, factors=factors,
                    may_have_out_bias=details.has_out_bias,
                )
            )  # fmt: skip
        if layer >= n_dense and sizes is not None:
            found.append(
                expert_block(
                    len(found), layer, n_embd, sizes, tensors, routed,
                    n_shared=n_shared, has_choice_bias=details.experts is Width.TOLD,
                )
            )  # fmt: skip
        else:
            n_ff = meta.sole("feed_forward_length")
            found.append(
                ffn_block(
                    len(found), layer, n_embd, n_ff, tensors, ffn,
                    norm=details.ffn_norm, has_biases=details.has_ffn_biases,
                )
            )  # fmt: skip
    head = Head(norm, inverse(factor.logits))
    found.append(output_head(len(found), dimensions, tensors, head, has_bias=details.has_head_bias))
    temperatures = () if attention.temperature is None else (attention.temperature,)
    inputs = inputs_with_factors(factors, attention.rope) if attention.rope else ModelInputs()
    return Model(tuple(found), replace(inputs, embedding_scale=factor.embeddings, temperatures=temperatures))


@dataclass(frozen=True)
class _Factors:
    """By what embeddings are multiplied, scores (0: by what is usual), and what a layer adds; by what logits are
    divided."""

    embeddings: float = 1.0
    scores: float = 0.0
    added: float = 1.0
    logits: float = 1.0


def _read_kv_heads(meta: Metadata, dimensions: Dimensions, details: Details) -> tuple[int, ...]:
    """Of every layer; of those that have some, equally many."""
    n_layers, key = dimensions.n_layers, "attention.head_count_kv"
    if not details.is_hybrid:
        return (meta.sole(key, meta.sole("attention.head_count")),) * n_layers
    n_kv = meta.each(key, n_layers)
    meta.require(len(set(n_kv) - {0}) == 1, key, "different values per layer")
    return n_kv


def _read_factors(meta: Metadata, details: Details) -> _Factors:
    logits = meta.number("logit_scale", 1.0 if details.is_hybrid else None)
    meta.require(logits != 0.0 and abs(1.0 / logits) < 1e30, "logit_scale", logits)
    return _Factors(
        meta.number("embedding_scale", 0.0) or 1.0,
        meta.number("attention.scale", 0.0),
        meta.number("residual_scale", 0.0) or 1.0,
        logits,
    )


def _read_attention(
    meta: Metadata, dimensions: Dimensions, heads: Heads, details: Details, factor: _Factors
) -> Attention:
    rope, temperature = read_rope(meta, heads.dim, dimensions.n_context_train, details.style), None
    if details.is_tempered:
        fast, slow = meta.number("rope.scaling.yarn_beta_fast", 32.0), meta.number("rope.scaling.yarn_beta_slow", 1.0)
        meta.require(0 < slow < fast, "rope.scaling.yarn_beta_fast", fast)
        rope = replace(rope, beta_fast=fast, beta_slow=slow)
        by = meta.number("attention.temperature_scale", 0.0)
        meta.require(not by or rope.original_context > 0, "rope.scaling.original_context_length", 0)
        temperature = Temperature(by, rope.original_context) if by else None
    is_turned = not details.is_scaled or meta.flag("rope.scaling.finetuned", True)
    return Attention(
        heads.dim,
        read_norm(meta),
        rope if is_turned else None,
        factor.scores or inverse_root(heads.dim),
        is_normed_late=details.is_normed_late,
        temperature=temperature,
        out_scale=factor.added,
    )


def _read_experts(meta: Metadata, details: Details) -> ExpertSizes:
    if details.experts is Width.NONE:
        raise UnsupportedModelError(f"{meta.file}: {meta.architecture} with experts is not supported")
    if details.experts is Width.DENSE:
        return replace(read_sizes(meta, may_be_silent=True), width=meta.sole("feed_forward_length"))
    if details.experts is Width.MAY_BE_TOLD:
        return read_sizes(meta, may_be_silent=True)
    step = meta.positive("interleave_moe_layer_step")
    if step != 1:
        raise UnsupportedModelError(f"{meta.file}: experts in every layer of {step} are not supported; in all they are")
    return read_sizes(meta)


def _read_shared(meta: Metadata, details: Details) -> int:
    """Columns of the shared experts."""
    n_shared = meta.integer("expert_shared_feed_forward_length", 0) if details.may_share else 0
    return meta.sole("feed_forward_length") if details.has_shared and not n_shared else n_shared
