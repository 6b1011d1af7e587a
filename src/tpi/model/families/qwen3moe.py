"""The ``qwen3moe`` architecture: Qwen 3 with experts. Attention as in ``qwen3``; all FFNs are experts, whose weights
are the softmax of all scores, normalised among the chosen ones."""

from tpi.model.attention import Attention, HeadNorms, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("qwen3moe",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Attention and experts of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    norm, sizes = read_norm(meta), read_sizes(meta, may_be_silent=True)
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim))
    ffn = ExpertFfn(norm, Routing(Gating.SOFTMAX, True, 1.0, *read_groups(meta)))
    for layer in range(dimensions.n_layers):
        found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, head_norms=HeadNorms.ALIKE))
        found.append(expert_block(len(found), layer, n_embd, sizes, tensors, ffn))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
