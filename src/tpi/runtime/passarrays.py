"""The arrays that a pass fills and graphs read: activations, positions, experts' rows, and what
the rows look at (``sights``).

Owns them; their addresses stay. One thread.
"""

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from tpi.errors import MemoryBudgetError
from tpi.model.spans import Span
from tpi.model.states import FULL
from tpi.model.steps import Temperature
from tpi.runtime.ggml.inputs import Addresses, Seen
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.sights import Sights

_AGE_BYTES = 7
"""Of a cell and a row while a window's mask is made: how long ago it was, and three conditions."""
_SEEN_BYTES = 2
"""Of a cell and a row while the mask of all cells is made: as it came, and turned round;"""
_OWN_SEEN_BYTES = 3
"""where every sequence looks at its own cells, these once more (``python -m bench growth``)."""


class PassArrays:
    """Arrays are f32 [max_tokens, n_embd] unless said otherwise."""

    def __init__(self, model: RankModel, settings: RankSettings) -> None:
        """Raises:
        MemoryBudgetError: the system does not give the memory.
        """
        self._model, self._settings = model, settings
        n, width, inputs = settings.max_tokens, model.spec.n_embd, model.inputs
        n_used = model.max_experts_used
        try:
            self.residual = np.zeros((n, width), np.float32)
            self._total = np.zeros(n * model.max_sum_width, np.float32)
            self._left = np.zeros(n * model.max_left_width, np.float32)
            self._partial = np.zeros(n * model.max_partial_width, np.float32)
            self._embeddings = np.zeros((n, width) if inputs.n_looked_up else (0, 0), np.float32)
            self._looked_up = np.zeros((n, inputs.n_looked_up), np.float32)
            self._positions = np.zeros(n, np.int32)
            self._temperatures = {temperature: np.zeros(n, np.float32) for temperature in inputs.temperatures}
            self.sights = Sights(model, settings)
            self._chosen = np.zeros(n * n_used, np.int32)
            self._outputs = np.zeros(n * n_used * width, np.float32)
            self.expert_rows = np.zeros((n if n_used else 0, width), np.float32)
            self._zeros = np.zeros(n, np.int32)
        except MemoryError as error:
            raise MemoryBudgetError(f"no room for the activations ({error}): use a shorter context") from error

    @property
    def addresses(self) -> Addresses:
        """Where graphs find them."""
        return Addresses(
            n_embd=self._model.spec.n_embd,
            n_looked_up=self._model.inputs.n_looked_up,
            residual=_address(self.residual),
            embeddings=_address(self._embeddings),
            looked_up=_address(self._looked_up),
            summed=_address(self._total),
            summed_stride=self._model.max_sum_width,
            left=_address(self._left),
            left_stride=self._model.max_left_width,
            positions=_address(self._positions),
            temperatures={kind: _address(values) for kind, values in self._temperatures.items()},
            cells={window: _address(values) for window, values in self.sights.cells.items()},
            masks={window: _address(values) for window, values in self.sights.masks.items()},
            blocks={window: _address(values) for window, values in self.sights.blocks.items()},
            gathered=(_address(self.sights.gathered[0]), _address(self.sights.gathered[1])),
            attended=_address(self.sights.attended),
            chosen=_address(self._chosen),
            outputs=_address(self._outputs),
            expert_rows=_address(self.expert_rows),
            zeros=_address(self._zeros),
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays when they are used to the full, and of a pass's mask while it is copied."""
        arrays: list[npt.NDArray[Any]] = [
            self.residual, self._total, self._partial, self._left, self._embeddings, self._looked_up,
            self._outputs, self.expert_rows,
        ]  # fmt: skip
        copied = self._settings.max_tokens * max(
            (_OWN_SEEN_BYTES if self._settings.is_reproducible else _SEEN_BYTES) * self._settings.n_cells,
            *(_AGE_BYTES * self._settings.ring_cells(window) for window in self._model.windows if window != FULL),
            0,
        )
        return sum(array.nbytes for array in arrays) + self.sights.n_bytes + copied

    def total(self, width: int, start: int, stop: int) -> Float32Array:
        """Rows of a sum of ``width``. Parts of a pass have memory of their own: their sums may be of different
        width."""
        return self._rows(self._total, self._model.max_sum_width, width, start, stop)

    def partial(self, width: int, start: int, stop: int) -> Float32Array:
        """The same of what this rank adds to it, where a graph gives less than that, or more."""
        return self._rows(self._partial, self._model.max_partial_width, width, start, stop)

    def left(self, width: int, start: int, stop: int) -> Float32Array:
        """Rows of what a block has left to the next one."""
        return self._rows(self._left, self._model.max_left_width, width, start, stop)

    @staticmethod
    def _rows(array: Float32Array, most: int, width: int, start: int, stop: int) -> Float32Array:
        first = start * most
        return array[first : first + (stop - start) * width].reshape(stop - start, width)

    def chosen(self, n_used: int, start: int, stop: int) -> npt.NDArray[np.int32]:
        """Which experts rows have chosen, i32 [rows, n_used]."""
        return self._chosen[start * n_used : stop * n_used].reshape(stop - start, n_used)

    def outputs(self, n_used: int, start: int, stop: int) -> Float32Array:
        """What experts have made of rows, f32 [rows, n_used, n_embd]."""
        row = n_used * self._model.spec.n_embd
        return self._outputs[start * row : stop * row].reshape(stop - start, n_used, -1)

    def keep_rows(self, rows: npt.NDArray[np.int32]) -> None:
        """From now on only these rows, which are ascending, go through the pass."""
        n_kept = len(rows)
        for array in (self.residual, self._embeddings, self._looked_up):
            if array.size:
                array[:n_kept] = array[rows]

    def load(self, work: Pass) -> Seen:
        """Copies the pass's inputs to where the graphs read them; returns what attention looks at."""
        n, width = work.n_tokens, self._model.spec.n_embd
        if work.embeddings is not None:
            self.residual[:n] = work.embeddings[:, :width]
            if self._looked_up.size:
                self._embeddings[:n] = work.embeddings[:, :width]
                self._looked_up[:n] = work.embeddings[:, width:]
        self._positions[:n] = work.positions
        for temperature, values in self._temperatures.items():
            values[:n] = _factors(temperature, work.positions)
        return self.sights.load(work)

    def written(self, window: int, n_tokens: int) -> list[Span]:
        """The cells of the first ``n_tokens`` rows of the pass that was loaded last, in runs."""
        cells = np.unique(self.sights.cells[window][:n_tokens])
        runs = np.split(cells, np.flatnonzero(np.diff(cells) > 1) + 1)
        return [Span(int(run[0]), int(run[-1]) + 1) for run in runs]


def _factors(temperature: Temperature, positions: npt.NDArray[np.int32]) -> Float32Array:
    """In 64 bits but for the quotient, as llama.cpp does."""
    turns = (positions.astype(np.float32) + np.float32(temperature.offset)) / np.float32(temperature.length)
    factors = np.log(np.floor(turns).astype(np.float64) + 1.0) * np.float32(temperature.scale) + 1.0
    return np.asarray(factors, np.float32)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data) if prod(array.shape) else 0
