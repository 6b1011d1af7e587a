"""The ``olmoe`` and ``minimax-m2`` architectures: OLMoE and MiniMax M2, whose queries and keys are normed over all
heads at once; all FFNs are experts. MiniMax turns heads in part, and has biases of what decides about experts."""

from dataclasses import replace

from tpi.model.allheads import NormedTogether, attention_blocks
from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.rope import read_rope
from tpi.model.routing import ExpertFfn, Gating, Routing, expert_block, read_groups, read_routing, read_sizes
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle
from tpi.model.tensors import Tensors

NAMES = ("olmoe", "minimax-m2")


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Heads, attention and experts of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling, or of choosing experts, that is not computed.
    """
    is_minimax = meta.architecture == "minimax-m2"
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    norm, sizes = read_norm(meta), read_sizes(meta, width="feed_forward_length")
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX, may_be_part=is_minimax)
    routing = Routing(Gating.SOFTMAX, False, 1.0, *read_groups(meta))
    if is_minimax:
        routing = replace(read_routing(meta), is_normalised=True, scale=1.0)
    graph, ffn = NormedTogether(heads, norm, rope), ExpertFfn(norm, routing)
    for layer in range(dimensions.n_layers):
        found += attention_blocks(len(found), layer, n_embd, tensors, graph)
        found.append(expert_block(len(found), layer, n_embd, sizes, tensors, ffn, has_choice_bias=is_minimax))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
