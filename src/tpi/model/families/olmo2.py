"""The ``olmo2`` architecture: OLMo 2 and 3. Queries and keys are normed over all heads at once, which takes a sum over
all ranks before attention; sums are normed before they are added. OLMo 3 sees a window in three layers of four."""

from dataclasses import dataclass, replace

from tpi.model.blocks import Block, Leavings
from tpi.model.common import Ffn, Head, Norm, PostNorm, after_sum, ffn_block, output_head
from tpi.model.heads import Heads, read_heads
from tpi.model.inputs import Model
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse_root
from tpi.model.rope import read_rope
from tpi.model.spec import Dimensions
from tpi.model.states import KvState
from tpi.model.steps import Rope, RopeStyle, Steps, V
from tpi.model.tensors import Tensors

NAMES = ("olmo2",)
_PATTERN = 4
"""Of so many layers the last one sees everything."""


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """Of every layer heads, attention, what follows it, FFN, and what follows that; then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
        UnsupportedModelError: a kind of rope scaling that is not computed.
    """
    heads, n_embd, found = read_heads(meta, dimensions), dimensions.n_embd, list[Block]()
    dim, n_ff, eps = heads.dim, meta.sole("feed_forward_length"), meta.epsilon("attention.layer_norm_rms_epsilon")
    rope = read_rope(meta, dim, dimensions.n_context_train, RopeStyle.NEOX)
    near = replace(rope, frequency_scale=1.0, extrapolation=0.0, attention_factor=1.0)
    windows = (0,) * dimensions.n_layers
    if meta.integer("attention.sliding_window", 0):
        windows = meta.windows(dimensions.n_layers, _PATTERN)
    norm = Norm(eps)
    ffn, post_norm = Ffn(norm), PostNorm(norm)
    leavings = Leavings(2, ((dim, 1), (dim, heads.group), (dim, heads.group)))
    for layer, window in enumerate(windows):
        at, state = f"blk.{layer}.", heads.state_of(window)
        o = (
            tensors.values("q_norm", at + "attn_q_norm.weight", heads.n * dim, dim),
            tensors.values("k_norm", at + "attn_k_norm.weight", heads.n_kv * dim, dim, heads.group),
            tensors.columns("o", at + "attn_output.weight", (heads.n * dim, n_embd), dim),
        )
        measures = (heads.measure(o),)
        found.append(
            Block(
                len(found), "heads", layer, measures, heads.qkv(tensors, at, n_embd), AllHeads(state),
                is_kept=True, leaves=leavings,
            )
        )  # fmt: skip
        attention = Attention(heads, eps, near if window else rope)
        found.append(Block(len(found), "attention", layer, measures, o, attention, state, is_kept=True))
        found.append(after_sum(len(found), "attention", layer, n_embd, tensors, post_norm))
        found.append(ffn_block(len(found), layer, n_embd, n_ff, tensors, ffn, norm=None, is_kept=True))
        found.append(after_sum(len(found), "ffw", layer, n_embd, tensors, post_norm))
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))


@dataclass(frozen=True)
class AllHeads:
    """Queries, keys and values; the squares of all queries and of all keys are summed."""

    state: KvState

    def build(self, g: Steps[V]) -> V:
        x = g.residual()
        q, k, v = g.matmul("q", x), g.matmul("k", x), g.matmul("v", x)
        sums = g.join(g.square_sums(q), g.square_sums(k, self.state))
        return g.join(sums, g.join(q, g.join(k, v)))


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with what ``AllHeads`` has left."""

    heads: Heads
    rms_eps: float
    rope: Rope

    def build(self, g: Steps[V]) -> V:
        dim, sums = self.heads.dim, g.left_sums()
        q = g.rms_scaled(g.left(0), g.some(sums, 0, 1), self.heads.n * dim, self.rms_eps, "q_norm")
        k = g.rms_scaled(g.left(1), g.some(sums, 1, 1), self.heads.n_kv * dim, self.rms_eps, "k_norm")
        q, k = g.rope(q, self.rope, dim), g.rope(k, self.rope, dim)
        return g.matmul("o", g.rows(g.attention(q, k, g.left(2), inverse_root(dim))))
