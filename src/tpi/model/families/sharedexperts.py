"""Architectures with experts of which every token uses some, behind leading dense layers: GLM 4.5 to 4.7 and GLM 4.5
Air (``glm4moe``), dots.llm1 (``dots1``), Ling and Ring 2 (``bailingmoe2``)."""

from collections.abc import Mapping
from dataclasses import dataclass

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, ExpertSizes, Gating, expert_block, read_routing, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors


@dataclass(frozen=True)
class Details:
    """What differs."""

    usual: Gating | None = None
    """How experts are chosen, where the file does not say."""
    ffn_norm: str = "ffn_norm"
    may_be_part: bool = True
    """The first values of a head alone may be turned."""
    may_be_silent: bool = False
    """Files need not say how wide an expert is."""
    has_own_width: bool = False
    """Shared experts may have a width of their own."""


_DETAILS: Mapping[str, Details] = {
    "bailingmoe2": Details(has_own_width=True),
    "dots1": Details(may_be_part=False),
    "glm4moe": Details(Gating.SIGMOID, "post_attention_norm", may_be_silent=True),
}
NAMES = tuple(_DETAILS)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling, or of choosing experts, that is not computed.
    """
    details, found = _DETAILS[meta.architecture], list[Block]()
    heads, n_embd, norm = read_heads(meta, dimensions), dimensions.n_embd, read_norm(meta)
    n_dense = meta.integer("leading_dense_block_count", 0)
    sizes = read_sizes(meta, may_be_silent=details.may_be_silent)
    n_shared = _read_shared(meta, details, sizes)
    rope = read_rope(
        meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, may_be_part=details.may_be_part
    )  # fmt: skip
    attention, dense = Attention(heads.dim, norm, rope, inverse_root(heads.dim)), Ffn(norm)
    routed = ExpertFfn(norm, read_routing(meta, details.usual))
    for layer in range(dimensions.n_layers):
        is_normed = f"blk.{layer}.attn_q_norm.weight" in tensors
        head_norms = HeadNorms.ALIKE if is_normed else HeadNorms.NONE
        found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, head_norms=head_norms))
        if layer < n_dense:
            n_ff = meta.sole("feed_forward_length")
            found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, dense, norm=details.ffn_norm))
        else:
            found.append(
                expert_block(
                    len(found), layer, n_embd, sizes, tensors, routed,
                    norm=details.ffn_norm, n_shared=n_shared, has_choice_bias=True,
                )
            )  # fmt: skip
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))


def _read_shared(meta: Metadata, details: Details, sizes: ExpertSizes) -> int:
    """Columns of the shared experts."""
    width = meta.integer("expert_shared_feed_forward_length", 0) if details.has_own_width else 0
    return (width or sizes.width) * meta.integer("expert_shared_count")
