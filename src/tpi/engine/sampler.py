"""Draws the next token from one row of logits.

Knows neither tokens' text nor the model. Runs on the master's generation thread; one sampler per answer.

The order is llama.cpp's: repetition penalty, top-k, top-p, min-p, temperature, draw. Top-p and min-p therefore
look at the probabilities before the temperature.
"""

import secrets
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tpi.engine.settings import SamplingSettings
from tpi.errors import NumericError

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float64]

# With top-k off, top-p nearly always ends among the first thousand tokens: sorting 128k of them would take
# ten times longer than everything else here.
_HEAD = 1024


class Sampler:
    """One answer's source of tokens: the same settings, seed and logits give the same tokens.

    The random generator is its own (PCG64), so nothing else in the process moves it.
    """

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._generator = np.random.Generator(np.random.PCG64(self._seed))
        self._recent: deque[int] = deque(maxlen=settings.penalty_window_tokens)

    @property
    def seed(self) -> int:
        """The seed in use: the one of the settings, or the one that was drawn."""
        return self._seed

    def accept(self, token_ids: Iterable[int]) -> None:
        """Tells the repetition penalty about tokens of the prompt or the answer, in their order."""
        self._recent.extend(token_ids)

    def sample(self, logits: Logits) -> int:
        """Returns the id of the drawn token; the caller passes it to ``accept``.

        Args:
            logits: float32 ``[n_vocab]``; read only.

        Raises:
            NumericError: a logit is infinite or not a number.
        """
        if not np.isfinite(logits).all():
            n_bad = int(logits.size - np.isfinite(logits).sum())
            raise NumericError(
                f"{n_bad} of {logits.size} logits are not finite numbers; "
                "the model file or a device's memory is damaged: try 'tpi inspect --verify'"
            )
        logits = self._penalised(logits)
        if self._settings.temperature == 0:
            return int(np.argmax(logits))
        ids, kept = self._filtered(logits)
        weights = np.exp((kept - kept.max()) / self._settings.temperature)
        cumulative = np.cumsum(weights)
        position = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        return int(ids[min(position, len(ids) - 1)])

    def _penalised(self, logits: Logits) -> Logits:
        penalty = self._settings.repetition_penalty
        recent = np.fromiter(self._recent, dtype=np.int64)
        recent = np.unique(recent[(recent >= 0) & (recent < logits.size)])
        if penalty == 1.0 or recent.size == 0:
            return logits
        logits = logits.copy()
        values = logits[recent]
        logits[recent] = np.where(values > 0, values / penalty, values * penalty)
        return logits

    def _filtered(self, logits: Logits) -> tuple[Ids, Weights]:
        """The tokens that top-k, top-p and min-p leave, with their logits.

        All three keep a prefix of the tokens sorted by logit, so the shortest prefix wins: the cheap filters go first,
        and top-p still measures its share of what top-k left.
        """
        settings = self._settings
        ids = _highest(logits, settings.top_k) if settings.top_k else np.arange(logits.size)
        kept = logits[ids].astype(np.float64)
        mass = float(np.exp(kept - kept.max()).sum())
        if settings.min_p > 0:
            likely = kept >= kept.max() + np.log(settings.min_p)
            ids, kept = ids[likely], kept[likely]
        if settings.top_p < 1:
            order = _nucleus(kept, settings.top_p * mass)
            ids, kept = ids[order], kept[order]
        return ids, kept


def _highest(values: npt.NDArray[np.floating], n_kept: int) -> Ids:
    """Indices of the n highest values, ascending; of equal values the lower index stays."""
    if n_kept >= values.size:
        return np.arange(values.size)
    threshold = np.partition(values, values.size - n_kept)[values.size - n_kept]
    above = np.flatnonzero(values > threshold)
    equal = np.flatnonzero(values == threshold)[: n_kept - above.size]
    return np.sort(np.concatenate((above, equal)))


def _nucleus(kept: Weights, mass: float) -> Ids:
    """Indices of the fewest highest logits whose weights (1 for the highest) reach a mass, or of all of them."""
    head = _highest(kept, _HEAD)
    for candidates in (head, np.arange(kept.size)):
        order = candidates[np.argsort(-kept[candidates], kind="stable")]
        cumulative = np.cumsum(np.exp(kept[order] - kept[order[0]]))
        if cumulative[-1] >= mass:
            break
    return order[: int(np.searchsorted(cumulative, mass, side="left")) + 1]
