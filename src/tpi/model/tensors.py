"""The tensors of a model while its blocks are made: each is looked up, checked, and counted as used."""

from collections.abc import Mapping

from tpi.model.blocks import Axis, Block, Graph, Slot, measure_of
from tpi.model.metadata import Metadata
from tpi.model.spec import Dimensions, TensorSpec

FFN_UNIT_COLUMNS = 32
"""FFN columns are never cut finer than this, so that unquantised slices keep rows of whole cache lines."""
_HEAD_UNIT_ROWS = 32

EMBEDDING, _HEAD, _HEAD_NORM = "token_embd.weight", "output.weight", "output_norm.weight"


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
        slot = self._slot(role, name, (n_columns, 1), Axis.COPY, 1, 1)
        kind = slot.tensor.type.name
        self._meta.require(kind == "F32", f"type of {slot.tensor.name}", kind)
        return slot

    def rows(self, role: str, name: str, shape: tuple[int, int], step: int = 1, group: int = 1) -> Slot:
        """A matrix that is cut between rows."""
        return self._slot(role, name, shape, Axis.ROWS, step, group)

    def columns(self, role: str, name: str, shape: tuple[int, int], step: int = 1) -> Slot:
        """A matrix that is cut between columns."""
        return self._slot(role, name, shape, Axis.COLUMNS, step, 1)

    def _slot(self, role: str, name: str, shape: tuple[int, int], axis: Axis, step: int, group: int) -> Slot:
        tensor = self.find(name)
        found = tensor.n_columns, tensor.n_rows
        self._meta.require(found == shape, tensor.name, found)
        return Slot(role, tensor, axis, step, group)


def head_of(index: int, dimensions: Dimensions, tensors: Tensors, graph: Graph) -> Block:
    """The output head: ``output`` or, where there is none, the embedding table once more."""
    name = _HEAD if _HEAD in tensors else EMBEDDING
    slots = (
        tensors.copy("head_norm", _HEAD_NORM, dimensions.n_embd),
        tensors.rows("head", name, (dimensions.n_embd, dimensions.n_vocab)),
    )
    measure = measure_of("rows", dimensions.n_vocab, _HEAD_UNIT_ROWS, slots)
    return Block(index, "head", dimensions.n_layers, measure, slots, graph, is_head=True)
