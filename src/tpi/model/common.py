"""Blocks that several architectures have in common."""

from dataclasses import dataclass, replace

from tpi.model.blocks import OWN, Block, Slot, measure_of
from tpi.model.metadata import Metadata
from tpi.model.numbers import inverse
from tpi.model.spans import Span
from tpi.model.spec import Dimensions
from tpi.model.steps import Activation, Steps, Unary, Ungated, V
from tpi.model.tensors import EMBEDDING, Tensors, bias_of

FFN_UNIT_COLUMNS = 32
"""FFN columns are never cut finer than this, so that unquantised slices keep rows of whole cache lines."""
_HEAD_UNIT_ROWS = 32


@dataclass(frozen=True)
class Norm:
    """Normalisation of every row, or of every head, by its root mean square or, if ``is_centred``, by mean and
    variance; times the weights of a role, plus its bias if there is one: a centred norm may have one, and of others
    ``may_have_bias`` says so."""

    eps: float
    is_centred: bool = False
    may_have_bias: bool = False

    def build(self, g: Steps[V], x: V, role: str) -> V:
        """``x`` as it is where the block has no such role."""
        if not g.has(role):
            return x
        made = g.layer_norm(x, role, self.eps) if self.is_centred else g.rms_norm(x, role, self.eps)
        return g.plus(made, bias_of(role)) if g.has(bias_of(role)) else made


def read_norm(meta: Metadata, *, is_centred: bool = False) -> Norm:
    """Raises:
    ModelFileError: the entry is missing or impossible.
    """
    return Norm(meta.epsilon(f"attention.layer_norm{'' if is_centred else '_rms'}_epsilon"), is_centred)


def norm_slots(tensors: Tensors, role: str, name: str, n: int, norm: Norm) -> tuple[Slot, ...]:
    """Weights of ``n`` values, the tensor ``name``, and the bias that the norm may have.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    has_bias = (norm.is_centred or norm.may_have_bias) and f"{name}.bias" in tensors
    bias = (tensors.copy(bias_of(role), f"{name}.bias", n),) if has_bias else ()
    return (tensors.copy(role, f"{name}.weight", n), *bias)


def feed_forward(g: Steps[V], x: V, activation: Activation | Ungated) -> V:
    """``down(activation(gate(x)) * up(x))``, or of an activation that gates nothing ``down(activation(up(x)))``; plus
    the biases that there are."""
    if isinstance(activation, Ungated):
        return g.biased("down", g.apply(activation, g.biased("up", x)))
    gate = g.biased("gate", x)
    return g.biased("down", g.gated(activation, gate, g.biased("up", x)))


@dataclass(frozen=True)
class Ffn:
    """A feed-forward network of the normed stream; without the role ``ffn_norm`` of the stream as it is."""

    norm: Norm
    activation: Activation | Ungated = Activation.SWIGLU
    out_scale: float = 1.0
    """By which the result is multiplied."""

    def build(self, g: Steps[V]) -> V:
        made = feed_forward(g, self.norm.build(g, g.residual(), "ffn_norm"), self.activation)
        return g.scale(made, self.out_scale)


def ffn_block(
    index: int,
    layer: int,
    n_embd: int,
    n_ff: int,
    tensors: Tensors,
    graph: Ffn,
    *,
    norm: str | None = "ffn_norm",
    has_biases: bool = False,
    is_kept: bool = False,
) -> Block:
    """A feed-forward network, cut by its columns. ``norm``: what the file calls the norm before.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    slots = (
        *(norm_slots(tensors, "ffn_norm", f"blk.{layer}.{norm}", n_embd, graph.norm) if norm else ()),
        *ffn_slots(f"blk.{layer}.", n_embd, n_ff, tensors, graph.activation, has_biases=has_biases),
    )
    measure = measure_of("columns", n_ff, FFN_UNIT_COLUMNS, slots)
    return Block(index, "ffn", layer, (measure,), slots, graph, is_kept=is_kept)


def ffn_slots(
    at: str,
    n_embd: int,
    n_ff: int,
    tensors: Tensors,
    activation: Activation | Ungated = Activation.SWIGLU,
    *,
    suffix: str = "",
    measure: int = 0,
    has_biases: bool = False,
) -> tuple[Slot, ...]:
    """What :func:`feed_forward` needs. Gate and up may be one tensor, gate first, which files call up. ``suffix``: of
    the names of tensors, ``measure``: the number of the one that they are cut in; ``has_biases``: each of the three, if
    the file has it.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    up, found = f"{at}ffn_up{suffix}", list[Slot]()
    roles = ("up",) if isinstance(activation, Ungated) else ("gate", "up")
    is_fused = len(roles) > 1 and f"{at}ffn_gate{suffix}.weight" not in tensors
    for number, role in enumerate(roles):
        rows = Span(number * n_ff, (number + 1) * n_ff) if is_fused else None
        name = up if is_fused else f"{at}ffn_{role}{suffix}"
        shape = n_embd, n_ff * (2 if is_fused else 1)
        found.append(tensors.rows(role, f"{name}.weight", shape, measure=measure, rows=rows))
        if has_biases and f"{name}.bias" in tensors:
            start = rows.start if rows else 0
            bias = tensors.values(bias_of(role), f"{name}.bias", shape[1], starts=(start,))
            found.append(replace(bias, measure=measure))
    down = f"{at}ffn_down{suffix}"
    found.append(tensors.columns("down", f"{down}.weight", (n_ff, n_embd), measure=measure))
    if has_biases and f"{down}.bias" in tensors:
        found.append(tensors.first(bias_of("down"), f"{down}.bias", (n_embd, 1), measure))
    return tuple(found)


@dataclass(frozen=True)
class PostNorm:
    """A sum is normed, then added to the stream."""

    norm: Norm

    def build(self, g: Steps[V]) -> V:
        return g.add(self.norm.build(g, g.summed(), "post_norm"), g.residual())


def after_sum(index: int, name: str, layer: int, n_embd: int, tensors: Tensors, graph: PostNorm) -> Block:
    """What follows the sum of the block that files call ``name``.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    slots = norm_slots(tensors, "post_norm", f"blk.{layer}.post_{name}_norm", n_embd, graph.norm)
    return Block(index, f"after {name}", layer, OWN, slots, graph, is_own=True)


@dataclass(frozen=True)
class Head:
    """Logits of the normed stream: plus their bias, if there is one, times ``scale``, bounded by ``cap`` if it is not
    0."""

    norm: Norm
    scale: float = 1.0
    cap: float = 0.0

    def build(self, g: Steps[V]) -> V:
        logits = g.scale(g.biased("head", self.norm.build(g, g.residual(), "head_norm")), self.scale)
        if not self.cap:
            return logits
        return g.scale(g.apply(Unary.TANH, g.scale(logits, inverse(self.cap))), self.cap)


def output_head(
    index: int,
    dimensions: Dimensions,
    tensors: Tensors,
    graph: Head,
    *,
    has_bias: bool = False,
    is_tied: bool = False,
    norm: str = "output_norm",
) -> Block:
    """The output head: ``output`` or, where there is none, the embedding table once more. ``has_bias``: with one, if
    the file has it; ``is_tied``: the file's ``output``, if any, is not looked at; ``norm``: what it calls the norm.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    name = "output.weight" if "output.weight" in tensors and not is_tied else EMBEDDING
    bias: tuple[Slot, ...] = ()
    if has_bias and "output.bias" in tensors:
        bias = (tensors.values("head_bias", "output.bias", dimensions.n_vocab),)
    slots = (
        *norm_slots(tensors, "head_norm", norm, dimensions.n_embd, graph.norm),
        tensors.rows("head", name, (dimensions.n_embd, dimensions.n_vocab)),
        *bias,
    )
    measure = measure_of("rows", dimensions.n_vocab, _HEAD_UNIT_ROWS, slots)
    return Block(index, "head", dimensions.n_layers, (measure,), slots, graph, is_head=True)
