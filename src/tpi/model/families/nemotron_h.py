"""The ``nemotron_h`` architecture: Nemotron Nano 2 and Nemotron-H. A layer is a recurrence (Mamba-2), attention whose
heads are not turned, or a network of squared ReLUs, each of the normed stream."""

from tpi.model.attention import Attention, attention_block
from tpi.model.blocks import Block
from tpi.model.common import Ffn, Head, Norm, ffn_block, output_head
from tpi.model.heads import read_heads
from tpi.model.inputs import Model
from tpi.model.mamba import mamba_blocks, read_mamba
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.spec import Dimensions
from tpi.model.steps import Unary
from tpi.model.tensors import Tensors

NAMES = ("nemotron_h",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """One of the three for every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
    """
    n_embd, n_layers, found = dimensions.n_embd, dimensions.n_layers, list[Block]()
    usual, own = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
    norm, mamba = Norm(meta.epsilon(own if own in meta else usual)), read_mamba(meta)
    ffn = Ffn(norm, Unary.SQUARED_RELU)
    n_kv, n_ff = meta.each("attention.head_count_kv", n_layers), meta.each("feed_forward_length", n_layers)
    for layer in range(n_layers):
        if n_ff[layer]:
            found.append(
                ffn_block(len(found), layer, n_embd, n_ff[layer], tensors, ffn, norm="attn_norm", has_biases=True)
            )
        elif n_kv[layer]:
            heads = read_heads(meta, dimensions, n_kv[layer])
            attention = Attention(heads.dim, norm, None, inverse_root(heads.dim))
            found.append(attention_block(len(found), layer, heads, n_embd, tensors, attention, may_have_out_bias=True))
        else:
            found += mamba_blocks(len(found), layer, n_embd, mamba, tensors, norm)
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
