"""The ``falcon-h1`` architecture: Falcon-H1. In every layer a recurrence (Mamba-2) and attention look at the same
normed stream; what both make is added up."""

from dataclasses import dataclass, replace

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, ffn_block, output_head, read_norm
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.mamba import mamba_blocks, read_mamba
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.steps import RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("falcon-h1",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Recurrence, attention and FFN of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    n_embd, norm, found = dimensions.n_embd, read_norm(meta), list[Block]()
    heads, mamba, n_ff = read_heads(meta, dimensions), read_mamba(meta), meta.sole("feed_forward_length")
    rope = read_rope(meta, heads.dim, dimensions.n_context_train, RopeStyle.NEOX)
    attention = Attention(heads.dim, norm, rope, inverse_root(heads.dim))
    for layer in range(dimensions.n_layers):
        at = f"blk.{layer}."
        is_normed = at + "ssm_norm.weight" in tensors
        found += mamba_blocks(len(found), layer, n_embd, mamba, tensors, norm, is_normed=is_normed, is_kept=True)
        block = attention_block(len(found), layer, heads, n_embd, tensors, attention)
        found.append(replace(block, graph=Beside(attention)))
        ffn = ffn_block(len(found), layer, n_embd, n_ff, tensors, Ffn(norm), norm=None, has_biases=True)
        # Files have this norm without the word that all others' names end in.
        found.append(replace(ffn, slots=(tensors.copy("ffn_norm", at + "ffn_norm", n_embd), *ffn.slots)))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))


@dataclass(frozen=True)
class Beside:
    """Attention to the stream that the block before has looked at as well: that one's sum is added once."""

    attention: Attention

    def build(self, g: Steps[V]) -> V:
        made = self.attention.build(g)
        return g.add(made, g.summed()) if g.is_first() else made
