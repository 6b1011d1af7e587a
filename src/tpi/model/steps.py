"""The small vocabulary of steps from which an architecture builds the graph of a block.

An architecture calls these on a builder; ``runtime.ggml`` has the builder that makes ggml graphs. ``V`` is an opaque
activation of shape [n_tokens, width].
"""

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

V = TypeVar("V")


class RopeStyle(Enum):
    """Which values of a head are turned together: neighbours, or the first half with the second."""

    NORMAL = "normal"
    NEOX = "neox"


@dataclass(frozen=True)
class Rope:
    """Rotary embedding; the fields but the style are those of ggml's ``rope_ext``."""

    style: RopeStyle
    n_dims: int
    base: float
    frequency_scale: float = 1.0
    extrapolation: float = 0.0
    attention_factor: float = 1.0
    original_context: int = 0


class Steps(Protocol[V]):
    """What a block's graph can do. ``role`` names a slot of the block; sizes follow from the rank's share."""

    def has(self, role: str) -> bool:
        """Whether the rank holds some of it: a share may lack one of the block's measures."""
        ...

    def residual(self) -> V:
        """The residual stream that enters the block, f32 [n_tokens, n_embd]."""
        ...

    def rms_norm(self, x: V, role: str, eps: float) -> V:
        """Root-mean-square normalisation of every row, or of every head, times the weights of ``role``."""
        ...

    def layer_norm(self, x: V, role: str, eps: float) -> V:
        """Normalisation of every row, or of every head, by its mean and variance, times the weights of ``role``."""
        ...

    def heads(self, x: V, head_dim: int) -> V:
        """``x`` as heads, each a row of its own to norms."""
        ...

    def matmul(self, role: str, x: V) -> V:
        """``x`` times the transposed slice of ``role``."""
        ...

    def rope(self, x: V, rope: Rope, head_dim: int, factors_role: str | None) -> V:
        """Rotary embedding of every head of ``x`` at the tokens' positions."""
        ...

    def attention(self, q: V, k: V, v: V, head_dim: int, scale: float) -> V:
        """Writes k and v into the block's KV cache, then attends from q to all cells that the mask shows; scores are
        multiplied by ``scale``."""
        ...

    def swiglu(self, gate: V, up: V) -> V:
        """``silu(gate) * up``."""
        ...

    def add(self, x: V, y: V) -> V:
        """``x + y``."""
        ...

    def scale(self, x: V, factor: float) -> V:
        """``factor * x``."""
        ...
