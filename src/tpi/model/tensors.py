"""The tensors of a model while its blocks are made: each is looked up, checked, and counted as used."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tpi.model.blocks import Axis, Slot
from tpi.model.metadata import Metadata
from tpi.model.spans import Span
from tpi.model.spec import TensorSpec

EMBEDDING = "token_embd.weight"
_NUMBER_BYTES = 4


def scale_of(role: str) -> str:
    """The role of the number by which products with ``role`` are multiplied."""
    return f"{role}.scale"


def bias_of(role: str) -> str:
    """The role of what is added to products with ``role``."""
    return f"{role}_bias"


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

    def skip(self, prefix: str) -> int:
        """Leaves out what begins with ``prefix``; how many tensors these are."""
        found = {name for name in self._tensors if name.startswith(prefix)}
        self._used |= found
        return len(found)

    def find(self, name: str) -> TensorSpec:
        """A tensor of any shape."""
        self._meta.require_tensor(name in self._tensors, name)
        self._used.add(name)
        return self._tensors[name]

    # What goes whole to every rank, or to the first.

    def copy(self, role: str, name: str, n_columns: int) -> Slot:
        """A vector that goes whole to every rank; of 32 bits, as the kernels want norms and factors."""
        return self._in_32_bits(self._slot(role, name, (n_columns, 1), Axis.COPY))

    def matrix(self, role: str, name: str, shape: tuple[int, int], rows: Span | None = None) -> Slot:
        """A matrix, or some rows of one, that goes whole to every rank."""
        return self._slot(role, name, shape, Axis.COPY, rows=rows)

    def first(self, role: str, name: str, shape: tuple[int, int], measure: int = 0) -> Slot:
        """A vector, or one for each expert, that the first rank alone adds to the sum; of 32 bits."""
        return self._in_32_bits(self._slot(role, name, shape, Axis.FIRST, measure=measure))

    # What is cut.

    def vectors(
        self,
        role: str,
        name: str,
        shape: tuple[int, int],
        step: int = 1,
        group: int = 1,
        starts: tuple[int, ...] = (0,),
    ) -> Slot:
        """Vectors that are cut between them; of 32 bits, too."""
        slot = self._slot(role, name, shape, Axis.ROWS, step, group, starts=starts)
        return self._in_32_bits(replace(slot, is_whole=True))

    def values(
        self, role: str, name: str, n_columns: int, step: int = 1, group: int = 1, starts: tuple[int, ...] = (0,)
    ) -> Slot:
        """A vector that is cut as the rows of a matrix are to which it belongs; of 32 bits."""
        return self._in_32_bits(self._slot(role, name, (n_columns, 1), Axis.COLUMNS, step, group, starts=starts))

    def rows(
        self,
        role: str,
        name: str,
        shape: tuple[int, int],
        step: int = 1,
        group: int = 1,
        measure: int = 0,
        *,
        rows: Span | None = None,
        starts: tuple[int, ...] = (0,),
    ) -> Slot:
        """A matrix, or some rows of one, that is cut between rows."""
        return self._slot(role, name, shape, Axis.ROWS, step, group, measure, rows, starts)

    def matrices(self, role: str, name: str, shape: tuple[int, int], step: int) -> Slot:
        """Matrices of ``step`` rows, one below the other, that are cut between them."""
        return replace(self._slot(role, name, shape, Axis.ROWS, step), is_whole=True)

    def columns(
        self,
        role: str,
        name: str,
        shape: tuple[int, int],
        step: int = 1,
        measure: int = 0,
        *,
        group: int = 1,
        starts: tuple[int, ...] = (0,),
    ) -> Slot:
        """A matrix that is cut between columns."""
        return self._slot(role, name, shape, Axis.COLUMNS, step, group, measure, starts=starts)

    # One of many: of the first expert.

    def expert_rows(
        self, role: str, name: str, shape: tuple[int, int], n_experts: int, rows: Span | None = None
    ) -> Slot:
        """A matrix of ``shape`` for every expert, or some of its rows, cut between rows."""
        slot = self._slot(role, name, (shape[0], shape[1] * n_experts), Axis.ROWS)
        return replace(slot, rows=rows or Span(0, shape[1]))

    def expert_columns(self, role: str, name: str, shape: tuple[int, int], n_experts: int) -> Slot:
        """A matrix of ``shape`` for every expert, cut between columns."""
        slot = self._slot(role, name, (shape[0], shape[1] * n_experts), Axis.COLUMNS)
        return replace(slot, rows=Span(0, shape[1]))

    def expert_values(self, role: str, name: str, n_columns: int, n_experts: int, start: int = 0, n: int = 0) -> Slot:
        """A vector for every expert, or ``n`` values of it from ``start`` on, cut; of 32 bits."""
        slot = self._slot(role, name, (n_columns, n_experts), Axis.COLUMNS, starts=(start,))
        assert not n or start + n <= n_columns
        return self._in_32_bits(replace(slot, rows=Span(0, 1)))

    def expert_scale(self, role: str, name: str, n_experts: int) -> tuple[Slot, ...]:
        """The number by which the product with ``role`` is multiplied, for every expert, if there is one; of 32
        bits."""
        if name not in self:
            return ()
        slot = self._slot(scale_of(role), name, (n_experts, 1), Axis.COPY)
        return (replace(self._in_32_bits(slot), column=0),)

    def scaled(self, slots: Iterable[Slot]) -> tuple[Slot, ...]:
        """``slots``, and behind each whose tensor has a number beside it, by which products are multiplied, that
        number; of 32 bits."""
        found: list[Slot] = []
        for slot in slots:
            found.append(slot)
            name = slot.tensor.name.removesuffix(".weight") + ".scale"
            if slot.tensor.name.endswith(".weight") and name in self and self._tensors[name].n_bytes == _NUMBER_BYTES:
                number = self._slot(scale_of(slot.role), name, (1, 1), Axis.COPY, measure=slot.measure)
                found.append(self._in_32_bits(number))
        return tuple(found)

    def _slot(
        self,
        role: str,
        name: str,
        shape: tuple[int, int],
        axis: Axis,
        step: int = 1,
        group: int = 1,
        measure: int = 0,
        rows: Span | None = None,
        starts: tuple[int, ...] = (0,),
    ) -> Slot:
        tensor = self.find(name)
        found = tensor.n_columns, tensor.n_rows
        self._meta.require(found == shape, tensor.name, found)
        return Slot(role, tensor, axis, step, group, measure, rows=rows, starts=starts)

    def _in_32_bits(self, slot: Slot) -> Slot:
        kind = slot.tensor.type.name
        self._meta.require(kind == "F32", f"type of {slot.tensor.name}", kind)
        return slot
