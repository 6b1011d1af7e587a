"""Draws the next token from one row of logits.

Knows neither tokens' text nor the model. Runs on the master's generation thread; one sampler per answer.

The order is llama.cpp's: bias, penalties, DRY, top-k, typical-p, top-p, min-p, XTC, temperature, draw. All but the last
two therefore look at the probabilities before the temperature.
"""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpi.engine.constraint import Allowed
from tpi.engine.dry import Breakers
from tpi.engine.dry import penalties as dry_penalties
from tpi.engine.settings import SamplingSettings
from tpi.errors import ConstraintError, NumericError
from tpi.runtime.logits import Ids, Row, Wanted, highest, log_sum_exp

Weights = npt.NDArray[np.float64]

# With top-k off, top-p nearly always ends among the first thousand tokens: sorting 128k of them would take
# ten times longer than everything else here.
_HEAD = 1024

_NUCLEUS = 256
"""So many of each slice are asked for where nobody says how many are needed: nearly always more than enough."""
_MASKED = 64
"""At least so many where only some tokens are allowed: which ones is not known yet."""
_MOST_NAMED = 512
"""With more recent tokens than this the whole row is asked for."""
_ROOM = 64
"""For tokens, to begin with."""
_MARGIN = 1e-9
"""Closer than this to where top-p cuts, only the whole row tells on which side."""


class Sampler:
    """One answer's source of tokens: the same settings, seed and logits give the same tokens.

    The random generator is its own (PCG64), so nothing else in the process moves it.
    """

    def __init__(self, settings: SamplingSettings, breakers: Breakers | None = None) -> None:
        """``breakers`` are those of the settings, as tokens of the model."""
        self._settings, self._breakers = settings, breakers or {}
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._generator = np.random.Generator(np.random.PCG64(self._seed))
        self._tokens: Ids = np.empty(_ROOM, np.int64)
        """Of prompt and answer: the first ``_n_tokens`` of them."""
        self._n_tokens = 0
        self._changes: _Changes | None = None
        """What bias and penalties do to the next row, if that was asked for since the last token."""
        self._bias = dict(settings.logit_bias)
        self._has_penalties = (settings.repetition_penalty, settings.presence_penalty, settings.frequency_penalty) != (
            1,
            0,
            0,
        )

    @property
    def seed(self) -> int:
        """The seed in use: the one of the settings, or the one that was drawn."""
        return self._seed

    def accept(self, token_ids: Iterable[int]) -> None:
        """Tells the penalties about tokens of the prompt or the answer, in their order."""
        new = np.fromiter(token_ids, np.int64)
        n_tokens = self._n_tokens + new.size
        if n_tokens > self._tokens.size:
            self._tokens = np.resize(self._tokens, 2 * n_tokens)
        self._tokens[self._n_tokens : n_tokens] = new
        self._n_tokens, self._changes = n_tokens, None

    def save(self) -> "SamplerState":
        """Where it is, to come back to."""
        return SamplerState(self._generator.bit_generator.state, self._n_tokens)

    def restore(self, state: "SamplerState") -> None:
        """As if nothing had been drawn or accepted since ``save`` gave ``state``."""
        assert state.n_tokens <= self._n_tokens, "back, not forth"
        self._generator.bit_generator.state = state.generator
        self._n_tokens, self._changes = state.n_tokens, None

    def wanted(self, *, is_masked: bool = False) -> Wanted:
        """What ``try_sample`` needs of the next row: enough to draw what the whole row would give, in nearly all cases;
        if it ``is_masked``, maybe not all tokens will be allowed.

        The k highest after the penalty are among the k + n highest before it and the n tokens that it moves.
        """
        settings, moved = self._settings, self._changed().ids
        is_open = (settings.top_p == 1.0 and settings.min_p == 0.0) or settings.typical_p < 1
        if settings.top_k == 0 and settings.temperature > 0 and (is_open or moved.size):
            return Wanted(is_exact=False)
        if moved.size > _MOST_NAMED:
            return Wanted(is_exact=False)
        n_needed = 1 if settings.temperature == 0 else settings.top_k or _NUCLEUS
        n_needed = max(n_needed, _MASKED) if is_masked else n_needed
        return Wanted(n_needed + moved.size, tuple(moved.tolist()))

    def sample(self, row: Row, allowed: Allowed = None) -> int:
        """Returns the id of the drawn token, one of those that are ``allowed``; the caller passes it to ``accept``.

        Raises:
            NumericError: a logit is infinite or not a number.
            ConstraintError: no token is allowed.
        """
        token = self.try_sample(row, allowed)
        assert token is not None, "whoever has a part of a row only calls try_sample"
        return token

    def try_sample(self, row: Row, allowed: Allowed = None) -> int | None:
        """As ``sample``; None if the row's other tokens could matter: then the whole row is needed."""
        candidates = _allowed(_checked(row), allowed)
        if candidates.values.size == 0:
            if candidates.is_part:
                return None
            raise ConstraintError("what the answer must look like allows no token of the model: ask for another form")
        ids, values = candidates.ids, self._penalised(candidates.ids, candidates.values)
        if self._settings.temperature == 0:
            best = int(np.argmax(values))
            is_sure = not (candidates.is_masked and candidates.is_part) or values[best] > row.floor
            return int(ids[best]) if is_sure else None
        chosen = self._filtered(values, candidates)
        if chosen is None:
            return None
        if self._settings.xtc_probability > 0:
            chosen = self._without_top(values, chosen)
        kept = values[chosen].astype(np.float64)
        with np.errstate(over="ignore"):  # by a temperature that is next to nothing
            weights = np.exp((kept - kept.max()) / self._settings.temperature)
        cumulative = np.cumsum(weights)
        position = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        return int(ids[chosen[min(position, len(chosen) - 1)]])

    def _changed(self) -> "_Changes":
        if self._changes is None:
            told, settings = self._tokens[: self._n_tokens], self._settings
            n_recent = min(settings.penalty_window_tokens if self._has_penalties else 0, told.size)
            recent, n_times = np.unique(told[told.size - n_recent :], return_counts=True)
            repeated = dry_penalties(settings, self._breakers, told)
            ids = np.unique(np.concatenate((recent, _keys(self._bias), _keys(repeated))))
            self._changes = _Changes(
                ids[ids >= 0],
                _spread(ids, _keys(self._bias), _values(self._bias))[ids >= 0],
                _spread(ids, recent, n_times.astype(np.float64))[ids >= 0],
                _spread(ids, _keys(repeated), _values(repeated))[ids >= 0],
            )
        return self._changes

    def _penalised(self, ids: Ids, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        changes, settings = self._changed(), self._settings
        places = np.searchsorted(ids, changes.ids)
        here = places < ids.size
        here[here] = ids[places[here]] == changes.ids[here]
        if not here.any():
            return values
        result, places, n_times = values.copy(), places[here], changes.n_times[here]
        logits = result[places] + changes.bias[here].astype(np.float32)
        penalty = np.float32(settings.repetition_penalty)
        taken = (n_times * settings.frequency_penalty + settings.presence_penalty).astype(np.float32)
        logits = np.where(n_times > 0, np.where(logits > 0, logits / penalty, logits * penalty) - taken, logits)
        result[places] = logits - changes.repeated[here].astype(np.float32)
        return result

    def _filtered(self, values: npt.NDArray[np.float32], candidates: "_Candidates") -> Ids | None:
        """Indexes of the values, those of ``candidates`` after penalties, that top-k, typical-p, top-p and min-p leave;
        None if tokens that are not there could be left, too.

        Top-p and min-p keep a prefix of the tokens sorted by logit, so the shorter one wins: min-p, the cheap one, goes
        first, and top-p still measures its share of what the filters before both left.
        """
        settings, floor = self._settings, candidates.row.floor
        chosen = highest(values, settings.top_k) if settings.top_k else np.arange(values.size)
        kept = values[chosen].astype(np.float64)
        if candidates.is_part and candidates.is_masked and (kept.size < settings.top_k or kept.min() <= floor):
            return None
        is_part = settings.top_k == 0 and candidates.is_part
        if settings.typical_p < 1:
            if is_part:
                return None
            typical = _typical(kept, settings.typical_p)
            chosen, kept = chosen[typical], kept[typical]
        top = kept.max()
        mass = float(np.exp(candidates.row.log_sum_exp - top)) if is_part else float(np.exp(kept - top).sum())
        if is_part and (self._changed().ids.size or candidates.is_masked):
            return None
        if settings.min_p > 0:
            likely = kept >= top + np.log(settings.min_p)
            chosen, kept = chosen[likely], kept[likely]
        if settings.top_p < 1:
            order = _nucleus(kept, settings.top_p * mass)
            if is_part and _is_close_call(np.exp(kept[order] - top), settings.top_p * mass, _MARGIN * mass):
                return None
            chosen, kept = chosen[order], kept[order]
        return None if is_part and kept.min() <= floor else chosen

    def _without_top(self, values: npt.NDArray[np.float32], chosen: Ids) -> Ids:
        """XTC, "exclude top choices": sometimes leaves out all but the least probable of those that are probable
        enough."""
        settings, kept = self._settings, values[chosen].astype(np.float64)
        if settings.xtc_threshold > 0.5 or kept.size < 2 or self._generator.random() > settings.xtc_probability:
            return chosen
        weights = np.exp(kept - kept.max())
        order = np.argsort(-kept, kind="stable")
        n_likely = int((weights >= settings.xtc_threshold * weights.sum()).sum())
        return np.sort(chosen[order[max(0, n_likely - 1) :]])


@dataclass(frozen=True)
class _Changes:
    """By token, ids ascending: its bias, how many times it came lately, and what DRY takes from it."""

    ids: Ids
    bias: Weights
    n_times: Weights
    repeated: Weights


@dataclass(frozen=True)
class SamplerState:
    """Where a sampler is."""

    generator: Mapping[str, Any]
    n_tokens: int


@dataclass(frozen=True)
class _Candidates:
    """What is there of the allowed tokens of a row: ascending ids, and their logits."""

    row: Row
    ids: Ids
    values: npt.NDArray[np.float32]
    is_part: bool
    """Others may be allowed."""
    is_masked: bool


def _keys(by_token: Mapping[int, float]) -> Ids:
    return np.fromiter(by_token, np.int64, len(by_token))


def _values(by_token: Mapping[int, float]) -> Weights:
    return np.fromiter(by_token.values(), np.float64, len(by_token))


def _spread(ids: Ids, some: Ids, values: Weights) -> Weights:
    """For each of ``ids``, ascending, the value of the same among ``some`` of them; 0 for others."""
    found = np.zeros(ids.size)
    found[np.searchsorted(ids, some)] = values
    return found


def _checked(row: Row) -> Row:
    values = row.values
    if not np.isfinite(values).all():
        n_bad = int(values.size - np.isfinite(values).sum())
        raise NumericError(
            f"{n_bad} of {values.size} logits are not finite numbers; "
            "the model file or a device's memory is damaged: verify the file on every device"
        )
    return row


def _allowed(row: Row, allowed: Allowed) -> _Candidates:
    ids = np.arange(row.values.size) if row.ids is None else row.ids
    if allowed is None:
        return _Candidates(row, ids, row.values, not row.is_all, False)
    here = allowed[ids]
    is_part = not row.is_all and int(here.sum()) < int(allowed.sum())
    return _Candidates(row, ids[here], row.values[here], is_part, True)


def _is_close_call(weights: Weights, mass: float, margin: float) -> bool:
    """Whether ``weights``, or all but the last of them, add up to nearly ``mass``: rounded otherwise, one more or one
    less would have been kept."""
    reached = float(weights.sum())
    return abs(reached - mass) < margin or (weights.size > 1 and abs(reached - float(weights[-1]) - mass) < margin)


def _typical(kept: Weights, p: float) -> Ids:
    """Indices, ascending, of the logits whose information is nearest to the row's entropy: the fewest that have more
    than ``p`` of the probability, or all. After Meister et al., Locally Typical Sampling, section 5."""
    logs = kept - log_sum_exp(kept)
    weights = np.exp(logs)
    order = np.argsort(np.abs(-logs + (weights * logs).sum()), kind="stable")
    n_kept = int(np.searchsorted(np.cumsum(weights[order]), p, side="right")) + 1
    return np.sort(order[:n_kept])


def _nucleus(kept: Weights, mass: float) -> Ids:
    """Indices of the fewest highest logits whose weights (1 for the highest) reach a mass, or of all of them."""
    head = highest(kept, _HEAD)
    for candidates in (head, np.arange(kept.size)):
        order = candidates[np.argsort(-kept[candidates], kind="stable")]
        cumulative = np.cumsum(np.exp(kept[order] - kept[order[0]]))
        if cumulative[-1] >= mass:
            break
    return order[: int(np.searchsorted(cumulative, mass, side="left")) + 1]
