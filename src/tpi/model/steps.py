"""The small vocabulary of steps from which an architecture builds the graph of a block.

An architecture calls these on a builder; ``runtime.ggml`` has the builder that makes ggml graphs. ``V`` is an opaque
activation: rows of values, one row a token, [n_tokens, width]; or heads, [n_tokens, n_heads, head_dim].
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from tpi.model.states import KvState

V = TypeVar("V")


class RopeStyle(Enum):
    """Which values of a head are turned together: neighbours, or the first half with the second."""

    NORMAL = "normal"
    NEOX = "neox"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of the first ``n_dims`` values of a head; the fields but the style are those of ggml's
    ``rope_ext``."""

    style: RopeStyle
    n_dims: int
    base: float
    frequency_scale: float = 1.0
    extrapolation: float = 0.0
    attention_factor: float = 1.0
    original_context: int = 0
    beta_fast: float = 32.0
    beta_slow: float = 1.0


@dataclass(frozen=True)
class Temperature:
    """A factor that grows with the position p: ``log(floor((p + offset) / length) + 1) * scale + 1`` (Llama 4)."""

    scale: float
    length: int
    offset: float = 0.0


class Activation(Enum):
    """What a gated network does with its gate before it multiplies; ``SWIGLU_OAI`` also bounds both and adds 1."""

    SWIGLU = "swiglu"
    GEGLU = "geglu"
    SWIGLU_OAI = "swiglu-oai"


class Unary(Enum):
    """Functions of one value."""

    SIGMOID = "sigmoid"
    SILU = "silu"
    GELU = "gelu"
    SOFTPLUS = "softplus"
    TANH = "tanh"
    SQUARED_RELU = "squared relu"


@dataclass(frozen=True)
class Xielu:
    """``beta * x`` plus, of what is positive, ``a_p * x^2``, of the rest ``a_n * (e^min(x, eps) - 1 - x)``; ``a_p`` and
    ``a_n - beta`` are the softplus of the alphas (Huang and Schlag 2024)."""

    alpha_n: float
    alpha_p: float
    beta: float
    eps: float


Ungated = Unary | Xielu
"""Activations of networks that have no gate."""


class Steps(Protocol[V]):
    """What a block's graph can do. ``role`` names a slot of the block; sizes follow from the rank's share."""

    def has(self, role: str) -> bool:
        """Whether the rank holds some of it: a share may lack one of the block's measures."""
        ...

    def can_exceed(self, n_tokens: int) -> bool:
        """Whether a sequence can have more tokens than so many; the same on all ranks."""
        ...

    def is_first(self) -> bool:
        """Whether the rank's part is the first: it alone adds what is added once. Of a block that follows a sum."""
        ...

    # What enters.

    def residual(self) -> V:
        """The residual stream that enters the block; of an expert the rows that chose it. f32 [n_tokens, n_embd]."""
        ...

    def summed(self, number: int = 0) -> V:
        """Of a block that follows a sum, that sum: its vector of this number, f32 [n_tokens, n_embd]."""
        ...

    def left(self, number: int) -> V:
        """What the block before has left on this rank: its part of this number, f32 [n_tokens, width]."""
        ...

    def left_sums(self) -> V:
        """What the block before has left and all ranks have summed, f32 [n_tokens, n_summed]."""
        ...

    def embeddings(self) -> V:
        """The residual stream as it began, f32 [n_tokens, n_embd]."""
        ...

    def looked_up(self, first: int, width: int) -> V:
        """Some of the values that were looked up for every token beside its embedding, f32 [n_tokens, width]."""
        ...

    # Products, sums, norms.

    def matmul(self, role: str, x: V) -> V:
        """``x`` times the transposed slice of ``role``."""
        ...

    def biased(self, role: str, x: V) -> V:
        """The same plus the vector of the role's bias, if the rank has one."""
        ...

    def matmul_heads(self, role: str, x: V) -> V:
        """Every head of ``x`` times the transposed matrix of ``role`` for that head; heads of so many values as a
        matrix has rows. ``role`` has one matrix of equal size below the other."""
        ...

    def plus(self, x: V, role: str) -> V:
        """Every row of ``x`` plus the vector of ``role``."""
        ...

    def times(self, x: V, role: str) -> V:
        """Every row, or every head, of ``x`` times the vector, or the number, of ``role``."""
        ...

    def add(self, x: V, y: V) -> V:
        """``x + y``."""
        ...

    def multiply(self, x: V, y: V) -> V:
        """``x * y``; ``y`` may be one number for every row."""
        ...

    def scale(self, x: V, factor: float) -> V:
        """``factor * x``; ``x`` itself if that is 1."""
        ...

    def apply(self, function: Ungated, x: V) -> V:
        """``function(x)`` of every value."""
        ...

    def gated(self, activation: Activation, gate: V, up: V) -> V:
        """``activation(gate) * up``."""
        ...

    def rms_norm(self, x: V, role: str | None, eps: float) -> V:
        """Root-mean-square normalisation of every row, or of every head, times the weights of ``role``, if any."""
        ...

    def square_sums(self, x: V, state: KvState | None = None) -> V:
        """The sum of the squares of every row of ``x``, f32 [n_tokens, 1]; all ranks' add up to that of the whole row.
        With ``state`` ``x`` is its keys or values: of a head that several ranks hold each gives as large a part of the
        sum as it has of the query heads."""
        ...

    def rms_scaled(self, x: V, square_sums: V, n: int, eps: float, role: str) -> V:
        """Every row of ``x`` divided by the root of the mean of ``n`` squares, of which ``square_sums`` [n_tokens, 1]
        is the sum, times the weights of ``role``. A rank that has the whole row takes the kernel for norms."""
        ...

    def layer_norm(self, x: V, role: str, eps: float) -> V:
        """Normalisation of every row, or of every head, by its mean and variance, times the weights of ``role``."""
        ...

    # Shapes.

    def heads(self, x: V, head_dim: int) -> V:
        """``x`` as heads, each a row of its own to norms."""
        ...

    def rows(self, x: V) -> V:
        """Heads side by side as rows again."""
        ...

    def some(self, x: V, first: int, width: int) -> V:
        """Values ``first`` to ``first + width`` of every row, or of every head."""
        ...

    def n_heads(self, x: V) -> int:
        """How many heads there are."""
        ...

    def some_heads(self, x: V, first: int, n_heads: int) -> V:
        """``n_heads`` heads from number ``first`` on."""
        ...

    def join(self, x: V, y: V) -> V:
        """The values of every row, or head, of ``x``, then those of ``y``."""
        ...

    def repeat_head(self, x: V, like: V) -> V:
        """The only head of ``x`` as often as ``like`` has heads."""
        ...

    def repeat_heads(self, x: V, n: int) -> V:
        """Every head of ``x`` ``n`` times, beside one another."""
        ...

    # Attention.

    def rope(self, x: V, rope: Rope, head_dim: int, factors_role: str | None = None) -> V:
        """Rotary embedding of every head of ``x`` at the tokens' positions."""
        ...

    def tempered(self, x: V, temperature: Temperature) -> V:
        """Every head of ``x`` times the factor of its token's position."""
        ...

    def attention(self, q: V, k: V, v: V | None, scale: float, sinks: str | None = None, softcap: float = 0.0) -> V:
        """Writes k and v into the block's KV cache, then attends from q to all cells that the mask shows; scores are
        multiplied by ``scale``, and bounded by ``softcap`` if it is not 0. ``v`` None: values are the first of the
        keys'. ``sinks`` names a score for each head that takes its part of the attention. The result is heads."""
        ...

    def attention_again(self, q: V, scale: float, softcap: float = 0.0) -> V:
        """Attends from q to what another block keeps."""
        ...

    # Recurrences, each from the sequence's state and into the next.

    def causal_conv(self, x: V, role: str, part: int = 0) -> V:
        """Convolves every value of the rows with those of the rows before, by the kernels of ``role``; the last of them
        are part ``part`` of the state. ``x`` is used up: nothing else may need it."""
        ...

    def delta_net(self, q: V, k: V, v: V, decay: V, beta: V) -> V:
        """The gated delta rule (Yang et al. 2024): q and k [n_tokens, key heads, dim], v [n_tokens, value heads, dim],
        the logarithm of the decay and beta [n_tokens, value heads]. Every key head has as many value heads as belong to
        a group of the block's state; they come in turns: first one of every key head, as far as the rank has it, then
        the next ones. The result is value heads, scaled by 1 / sqrt(dim); ``v`` is used up."""
        ...

    def state_space(self, x: V, dt: V, decay_role: str, write: V, read: V, part: int) -> V:
        """The selective state space of Mamba-2 (Dao & Gu 2024): heads x [n_tokens, n_heads, dim], steps dt [n_tokens,
        n_heads] before their softplus, the decays of heads [n_heads, 1]; what writes to the state and what reads from
        it, [n_tokens, n_groups, n_state], for equally many heads each. The state, [n_heads, dim, n_state], is part
        ``part`` of the block's. The result is heads."""
        ...

    # Experts.

    def softmax(self, x: V) -> V:
        """The softmax of every row."""
        ...

    def best_groups(self, scores: V, n_groups: int, n_used: int) -> V:
        """``scores`` in groups of neighbours, with minus infinity in all but the ``n_used`` groups whose best two have
        the highest sums."""
        ...

    def choose(self, scores: V, x: V) -> None:
        """For every row the experts with the highest scores, in this order; they compute ``x``. At most once in a
        block: the next four steps are about this choice."""
        ...

    def chosen_weights(self, weights: V) -> V:
        """Of every row's weights, [n_tokens, n_experts], those of the chosen experts, [n_tokens, n_used]."""
        ...

    def normalised(self, weights: V) -> V:
        """Every row of weights divided by its sum, but by no less than 2^-14."""
        ...

    def expert_outputs(self) -> V:
        """What the chosen experts make of every row, [n_tokens, n_used, n_embd]; where the rank does not hold one,
        0."""
        ...

    def plus_chosen(self, outputs: V, role: str) -> V:
        """Outputs plus each expert's own vector of ``role``, [n_experts, n_embd]."""
        ...

    def weighted_sum(self, outputs: V, weights: V) -> V:
        """The sum of every row's weighted outputs, in the order of choice."""
        ...
