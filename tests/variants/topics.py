"""Weights with which experts are chosen alike however sums are rounded. Called by tests only.

Random routers choose by a hair now and then, in one of thousands of choices: then rounding decides, and two right
evaluations differ a lot. So every token has a topic, which stands in the first values of its embedding and stays there
while layers add to the others, and routers choose by topic, with some distance. What layers add together is about as
large as an embedding, so that the weights of experts, which depend on all values, stay near as well.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]
"""Makes the values of a tensor of this shape."""

N_TOPICS, N_USED = 16, 4
_STRENGTH = 3.0
_SCALES = np.linspace(1.0, 4.0, 7)[:, None]
"""By how much the levels of a topic may be multiplied in logits, where norms and what layers added differ."""
_DISTANCE, _N_TRIES = 0.01, 1000


def topical(std: float) -> Draw:
    """Embeddings, a token's in a row."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values = random.standard_normal(shape) * std
        values[:, :N_TOPICS] = _STRENGTH * std * np.eye(N_TOPICS)[np.arange(shape[0]) % N_TOPICS]
        return values

    return draw


def added(draw: Draw, n_layers: int, axis: int = -2) -> Draw:
    """Of what is added to embeddings twice in so many layers; ``axis`` is that of the embedding's values."""

    def draw_added(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values: Floats = draw(random, shape) * (2 * n_layers) ** -0.5
        np.moveaxis(values, axis, 0)[:N_TOPICS] *= 0.02
        return values

    return draw_added


@dataclass(frozen=True)
class Choice:
    """How experts are chosen: ``biases`` count only there; only experts of the best groups are."""

    is_sigmoid: bool = False
    biases: tuple[float, ...] = ()
    n_groups: int = 1
    n_used_groups: int = 1

    def is_clear(self, logits: Floats) -> bool:
        """Whether the same experts are chosen in all rows, with some distance."""
        scores = 1 / (1 + np.exp(-logits)) if self.is_sigmoid else np.exp(logits) / np.exp(logits).sum(-1)[:, None]
        if self.biases:
            scores = scores + np.array(self.biases)
        distance = np.inf
        if self.n_groups > 1:
            groups = scores.reshape(len(scores), self.n_groups, -1)
            is_best, distance = _best(np.sort(groups)[:, :, -2:].sum(-1), self.n_used_groups)
            scores = np.where(is_best[:, :, None], groups, -1.0).reshape(scores.shape)
        is_chosen, distance_within = _best(scores, N_USED)
        return min(distance, distance_within) > _DISTANCE and bool((is_chosen == is_chosen[0]).all())


def _best(scores: Floats, count: int) -> tuple[npt.NDArray[np.bool_], float]:
    """Which are the best of every row; and by how much at least, as a part of the worst of these."""
    in_order = np.sort(scores)[:, ::-1]
    worst, next_one = in_order[:, count - 1], in_order[:, count]
    return scores >= worst[:, None], float(((worst - next_one) / np.abs(worst)).min())


def router(choice: Choice, scale: float) -> Draw:
    """Rows of experts. Logits are ``scale`` times as large as those of a topic's levels, if rows have the norm of all
    ones."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        n_experts, n_embd = shape
        values: Floats = random.standard_normal(shape) * 0.1 * n_embd**-0.5
        for topic in range(N_TOPICS):
            values[:, topic] = _draw_levels(random, choice, n_experts)
        values *= scale
        return values

    return draw


def _draw_levels(random: np.random.Generator, choice: Choice, n_experts: int) -> Floats:
    if choice.n_groups > 1:
        levels = np.linspace(1, -1, n_experts)
    else:
        levels = np.concatenate([np.linspace(1, 0.25, N_USED), np.linspace(-0.25, -1, n_experts - N_USED)])
    for _ in range(_N_TRIES):
        levels = random.permutation(levels)
        if choice.is_clear(_SCALES * levels):
            return levels
    raise ValueError(f"{choice} is never clear")
