"""The tensors of a model while its blocks are made: each is looked up, checked, and counted as used."""

from collections.abc import Mapping
from dataclasses import replace

from tpi.model.blocks import Axis, Slot
from tpi.model.metadata import Metadata
from tpi.model.spec import TensorSpec

EMBEDDING = "token_embd.weight"


class Tensors:
    """Makes slots. Shapes are (columns, rows), as GGUF has them.

    All that makes a slot raises ModelFileError: the tensor is missing, or its shape or type is not the one.
    """

    def __init__(self, meta: Metadata, tensors: Mapping[str, TensorSpec]) -> None:
        self._meta, self._tensors = meta, tensors
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    @property
    def unused(self) -> set[str]:
        """Names of tensors that nothing has asked for."""
        return set(self._tensors) - self._used

    def find(self, name: str) -> TensorSpec:
        """A tensor of any shape."""
        self._meta.require_tensor(name in self._tensors, name)
        self._used.add(name)
        return self._tensors[name]

    def copy(self, role: str, name: str, n_columns: int) -> Slot:
        """A vector that goes whole to every rank; of 32 bits, as the kernels want norms and factors."""
        return self._in_32_bits(self._slot(role, name, (n_columns, 1), Axis.COPY))

    def vectors(self, role: str, name: str, shape: tuple[int, int], group: int = 1) -> Slot:
        """Vectors that are cut between them; of 32 bits, too."""
        return self._in_32_bits(replace(self._slot(role, name, shape, Axis.ROWS, 1, group), is_whole=True))

    def rows(
        self, role: str, name: str, shape: tuple[int, int], step: int = 1, group: int = 1, measure: int = 0
    ) -> Slot:
        """A matrix that is cut between rows."""
        return self._slot(role, name, shape, Axis.ROWS, step, group, measure)

    def columns(self, role: str, name: str, shape: tuple[int, int], step: int = 1, measure: int = 0) -> Slot:
        """A matrix that is cut between columns."""
        return self._slot(role, name, shape, Axis.COLUMNS, step, 1, measure)

    def _slot(
        self, role: str, name: str, shape: tuple[int, int], axis: Axis, step: int = 1, group: int = 1, measure: int = 0
    ) -> Slot:
        tensor = self.find(name)
        found = tensor.n_columns, tensor.n_rows
        self._meta.require(found == shape, tensor.name, found)
        return Slot(role, tensor, axis, step, group, measure)

    def _in_32_bits(self, slot: Slot) -> Slot:
        kind = slot.tensor.type.name
        self._meta.require(kind == "F32", f"type of {slot.tensor.name}", kind)
        return slot
