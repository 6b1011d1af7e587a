"""The small vocabulary of steps from which an architecture builds the graph of a block.

An architecture calls these on a builder; ``runtime.ggml`` has the builder that makes ggml graphs. ``V`` is an opaque
activation of shape [n_tokens, width].
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

V = TypeVar("V")


@dataclass(frozen=True)
class Rope:
    """Rotary embedding of pairs of neighbouring values; the fields are those of ggml's ``rope_ext``."""

    n_dims: int
    base: float
    frequency_scale: float = 1.0
    extrapolation: float = 0.0
    attention_factor: float = 1.0
    original_context: int = 0


class Steps(Protocol[V]):
    """What a block's graph can do. ``role`` names a slot of the block; sizes follow from the rank's share."""

    def residual(self) -> V:
        """The residual stream that enters the block, f32 [n_tokens, n_embd]."""
        ...

    def rms_norm(self, x: V, role: str, eps: float) -> V:
        """Root-mean-square normalisation of every row, times the weights of ``role``."""
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
