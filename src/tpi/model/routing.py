"""Experts as most architectures have them: how tokens choose them, and what one computes."""

from dataclasses import dataclass
from enum import Enum
from math import lcm

from tpi.errors import UnsupportedModelError
from tpi.model.blocks import Block, Experts, Slot, aligned_columns, measure_of
from tpi.model.common import FFN_UNIT_COLUMNS, Norm, feed_forward, ffn_slots, norm_slots
from tpi.model.metadata import Metadata
from tpi.model.spans import Span
from tpi.model.steps import Activation, Steps, Unary, V
from tpi.model.tensors import Tensors

_MOST_USED = 64
_SHARED = 1
"""Number of the measure of shared experts; the others are the first."""


class Gating(Enum):
    """What scores become before experts are chosen by them, as files number it; ``LATER``: the softmax of the chosen
    ones alone."""

    SOFTMAX = 1
    SIGMOID = 2
    LATER = 3


@dataclass(frozen=True)
class Routing:
    """How experts are chosen and weighted. Roles: ``choice_bias``, if the rank has it, is added to what decides;
    ``experts_bias`` goes by expert."""

    gating: Gating
    is_normalised: bool = False
    scale: float = 1.0
    n_groups: int = 1
    n_groups_used: int = 1

    def build(self, g: Steps[V], scores: V, x: V) -> V:
        """What the experts chosen by ``scores`` make of ``x``, weighted and added up."""
        weights = scores
        if self.gating is Gating.SOFTMAX:
            weights = g.softmax(scores)
        elif self.gating is Gating.SIGMOID:
            weights = g.apply(Unary.SIGMOID, scores)
        deciding = g.plus(weights, "choice_bias") if g.has("choice_bias") else weights
        if self.n_groups > 1:
            deciding = g.best_groups(deciding, self.n_groups, self.n_groups_used)
        g.choose(deciding, x)
        weights = g.chosen_weights(weights)
        if self.gating is Gating.LATER:
            weights = g.softmax(weights)
        if self.is_normalised:
            weights = g.normalised(weights)
        if self.scale not in (0.0, 1.0):
            weights = g.scale(weights, self.scale)
        outputs = g.expert_outputs()
        if g.has("experts_bias"):
            outputs = g.plus_chosen(outputs, "experts_bias")
        return g.weighted_sum(outputs, weights)


@dataclass(frozen=True)
class GatedExpert:
    """``down(activation(gate(x)) * up(x))``, gate and up with a bias where there is one."""

    activation: Activation

    def build(self, g: Steps[V]) -> V:
        x = g.residual()
        gate, up = g.biased("gate", x), g.biased("up", x)
        return g.matmul("down", g.gated(self.activation, gate, up))


@dataclass(frozen=True)
class ExpertFfn:
    """Experts of the normed stream and, where the block has them, a network of the shared ones, which every token uses,
    times the sigmoid of ``shared_gate`` if there is one."""

    norm: Norm
    routing: Routing
    activation: Activation = Activation.SWIGLU
    """Of the shared ones."""
    out_scale: float = 1.0
    """By which the result is multiplied."""

    def build(self, g: Steps[V]) -> V:
        x = self.norm.build(g, g.residual(), "ffn_norm")
        made = self.routing.build(g, g.biased("router", x), x)
        if g.has("down"):
            shared = feed_forward(g, x, self.activation)
            if g.has("shared_gate"):
                shared = g.multiply(shared, g.apply(Unary.SIGMOID, g.matmul("shared_gate", x)))
            made = g.add(made, shared)
        return g.scale(made, self.out_scale)


@dataclass(frozen=True)
class ExpertSizes:
    """``n`` experts of ``width`` columns, of which a token uses ``n_used``."""

    n: int
    n_used: int
    width: int


def read_sizes(
    meta: Metadata, *, may_be_silent: bool = False, width: str = "expert_feed_forward_length"
) -> ExpertSizes:
    """The experts that the metadata tell of, and in the entry ``width`` how wide one is. ``may_be_silent``: where they
    do not say that, those that a token uses are together as wide as a dense network.

    Raises:
        ModelFileError: an entry is missing or impossible.
    """
    n, n_used = meta.positive("expert_count"), meta.positive("expert_used_count")
    meta.require(n <= 1 << 12, "expert_count", n)
    meta.require(n_used <= min(n, _MOST_USED), "expert_used_count", n_used)
    if may_be_silent and width not in meta:
        n_together = meta.sole("feed_forward_length")
        meta.require(n_together >= n_used, "feed_forward_length", n_together)
        return ExpertSizes(n, n_used, n_together // n_used)
    return ExpertSizes(n, n_used, meta.sole(width))


def read_routing(meta: Metadata, usual: Gating | None = None) -> Routing:
    """How the metadata say that experts are chosen; ``usual``: where they do not say what scores become.

    Raises:
        ModelFileError: an entry is missing or impossible.
        UnsupportedModelError: scores become what is not computed.
    """
    gating = meta.integer("expert_gating_func", 0) or (usual.value if usual else 0)
    if gating not in [known.value for known in Gating]:
        raise UnsupportedModelError(f"{meta.file}: experts are chosen in a way (number {gating}) that is not supported")
    is_normalised, scale = meta.flag("expert_weights_norm", False), meta.number("expert_weights_scale", 0.0)
    return Routing(Gating(gating), is_normalised, scale, *read_groups(meta))


def read_groups(meta: Metadata) -> tuple[int, int]:
    """In how many groups experts stand, and of how many a token may choose.

    Raises:
        ModelFileError: impossible.
    """
    n, n_groups = meta.integer("expert_count", 1), meta.integer("expert_group_count", 0) or 1
    n_used = meta.integer("expert_group_used_count", 0) or 1
    fits = n_groups == 1 or (n % n_groups == 0 and n // n_groups >= 2 and n_used <= n_groups)
    meta.require(fits, "expert_group_count", n_groups)
    n_chosen = meta.integer("expert_used_count", 1)
    meta.require(n_groups == 1 or n_chosen <= n // n_groups * n_used, "expert_used_count", n_chosen)
    return n_groups, n_used


def expert_block(
    index: int,
    layer: int,
    n_embd: int,
    sizes: ExpertSizes,
    tensors: Tensors,
    graph: ExpertFfn,
    *,
    expert: Activation = Activation.SWIGLU,
    norm: str | None = "ffn_norm",
    n_shared: int = 0,
    has_choice_bias: bool = False,
    has_biases: bool = False,
    is_kept: bool = False,
) -> Block:
    """Experts, and ``n_shared`` columns of those that every token uses, in a measure of their own. ``norm``: what the
    file calls the norm before; ``has_choice_bias``: of what decides, if the file has it; ``has_biases``: the router and
    what experts make have one.

    Raises:
        ModelFileError: a tensor is missing, or its shape or type is not the one.
    """
    at = f"blk.{layer}."
    experts = gated_experts(at, n_embd, sizes, tensors, GatedExpert(expert))
    slots = [
        *(norm_slots(tensors, "ffn_norm", at + norm, n_embd, graph.norm) if norm else ()),
        tensors.matrix("router", at + "ffn_gate_inp.weight", (n_embd, sizes.n)),
    ]
    if has_biases:
        slots.append(tensors.copy("router_bias", at + "ffn_gate_inp.bias", sizes.n))
    if has_choice_bias and f"{at}exp_probs_b.bias" in tensors:
        slots.append(tensors.copy("choice_bias", at + "exp_probs_b.bias", sizes.n))
    if has_biases:
        slots.append(tensors.first("experts_bias", at + "ffn_down_exps.bias", (n_embd, sizes.n)))
    if not n_shared:
        return Block(index, "ffn", layer, (experts.whole(),), tuple(slots), graph, experts=experts, is_kept=is_kept)
    slots += ffn_slots(at, n_embd, n_shared, tensors, graph.activation, suffix="_shexp", measure=_SHARED)
    if f"{at}ffn_gate_inp_shexp.weight" in tensors:
        slots.append(tensors.matrix("shared_gate", at + "ffn_gate_inp_shexp.weight", (n_embd, 1)))
    measures = experts.whole(), measure_of("columns", n_shared, FFN_UNIT_COLUMNS, slots, number=_SHARED)
    return Block(index, "ffn", layer, measures, tuple(slots), graph, experts=experts, is_kept=is_kept)


def gated_experts(at: str, n_embd: int, sizes: ExpertSizes, tensors: Tensors, graph: GatedExpert) -> Experts:
    """The experts of a layer, whose tensors' names begin with ``at``; gate and up may be one tensor, gate first.

    Raises:
        ModelFileError: a tensor is missing or has another shape.
    """
    n, width = sizes.n, sizes.width
    fused = at + "ffn_gate_up_exps"
    slots: list[Slot] = []
    for number, role in enumerate(("gate", "up")):
        name = fused if f"{fused}.weight" in tensors else f"{at}ffn_{role}_exps"
        if name == fused:
            rows = Span(number * width, (number + 1) * width)
            slots.append(tensors.expert_rows(role, f"{name}.weight", (n_embd, 2 * width), n, rows))
        else:
            slots.append(tensors.expert_rows(role, f"{name}.weight", (n_embd, width), n))
        scale = at + "ffn_up_exps.scale" if name == fused else f"{name}.scale"
        slots += tensors.expert_scale(role, scale, n)
        if f"{name}.bias" in tensors:
            slots.append(tensors.expert_values(f"{role}_bias", f"{name}.bias", width, n))
    slots.append(tensors.expert_columns("down", at + "ffn_down_exps.weight", (width, n_embd), n))
    slots += tensors.expert_scale("down", at + "ffn_down_exps.scale", n)
    return Experts(n, sizes.n_used, width, _unit(width, slots), tuple(slots), graph)


def _unit(width: int, slots: list[Slot]) -> int:
    """Columns of an expert that are cut in: as an FFN's, if they come out even."""
    aligned = aligned_columns(slots)
    usual = lcm(FFN_UNIT_COLUMNS, aligned)
    return usual if width % usual == 0 else aligned if width % aligned == 0 else width
