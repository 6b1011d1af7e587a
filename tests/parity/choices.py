"""Who notes, imposes or perturbs the choice of experts. Called by tests only."""

from dataclasses import dataclass, field

import numpy as np

from tpi.runtime.experts import Ids
from tpi.runtime.protocols import Float32Array

Key = tuple[int, int, int]
"""Pass, block, row."""


@dataclass
class Noted:
    """Notes what every row chose, and by which scores; changes nothing."""

    ids: dict[Key, Ids] = field(default_factory=dict)
    scores: dict[Key, Float32Array] = field(default_factory=dict)

    def __call__(self, pass_id: int, block: int, first_row: int, ids: Ids, scores: Float32Array) -> Ids:
        for number, (chosen, row) in enumerate(zip(ids, scores, strict=True)):
            key = pass_id, block, first_row + number
            self.ids[key], self.scores[key] = chosen.copy(), row.copy()
        return ids


@dataclass
class Imposed:
    """Every row chooses what it chose in another run; notes what it would have chosen, too."""

    others: Noted
    own: Noted = field(default_factory=Noted)

    def __call__(self, pass_id: int, block: int, first_row: int, ids: Ids, scores: Float32Array) -> Ids:
        self.own(pass_id, block, first_row, ids, scores)
        return np.stack([self.others.ids[pass_id, block, first_row + number] for number in range(len(ids))])


@dataclass(frozen=True)
class Perturbed:
    """In one block of one pass the last choice of a row is another expert."""

    pass_id: int
    block: int
    row: int = 0

    def __call__(self, pass_id: int, block: int, first_row: int, ids: Ids, scores: Float32Array) -> Ids:
        row = self.row - first_row
        if (pass_id, block) != (self.pass_id, self.block) or not 0 <= row < len(ids):
            return ids
        changed = ids.copy()
        changed[row, -1] = next(e for e in range(scores.shape[1]) if e not in ids[row])
        return changed


@dataclass(frozen=True)
class Everywhere:
    """Several that perturb, one after the other."""

    each: list[Perturbed]

    def __call__(self, pass_id: int, block: int, first_row: int, ids: Ids, scores: Float32Array) -> Ids:
        for one in self.each:
            ids = one(pass_id, block, first_row, ids, scores)
        return ids


def differing(reference: Noted, other: Noted, n_used: int) -> list[tuple[float, float]]:
    """Of every row that would have chosen other experts than in the reference, although all before it was the same: how
    far the reference's last chosen score and the first one after it lie apart, and by how much scores differ at
    most."""
    found = []
    for key, chosen in reference.ids.items():
        if set(chosen.tolist()) != set(other.ids[key].tolist()):
            ordered = np.sort(reference.scores[key])[::-1]
            difference = float(np.abs(reference.scores[key] - other.scores[key]).max())
            found.append((float(ordered[n_used - 1] - ordered[n_used]), difference))
    return found
