"""The description of a model that every rank holds: dimensions, the file's own entries, tensors. Data, no I/O.

A spec travels inside plans and shard headers, hence msgspec structs. What follows from it, above all the blocks, every
rank derives by itself (``architectures``).
"""

import msgspec

from tpi.gguf.types import TYPES_BY_ID, TensorType

Entry = bool | int | float | str | tuple[bool | int | float, ...]
"""A value of a file's metadata."""


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """A whole tensor: ``n_columns`` (contiguous) by ``n_rows`` values of the GGUF type ``type_id``."""

    name: str
    type_id: int
    n_columns: int
    n_rows: int

    @property
    def type(self) -> TensorType:
        return TYPES_BY_ID[self.type_id]

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.type.row_bytes(self.n_columns)


class Dimensions(msgspec.Struct, frozen=True):
    """What every model has, whatever its architecture."""

    n_layers: int
    n_embd: int
    n_vocab: int
    n_context_train: int
    embedding: TensorSpec


class ModelSpec(Dimensions, frozen=True, kw_only=True):
    """A model. ``digest`` names the model's bytes (see ``weights.identity``); ranks compare it. ``entries`` are the
    architecture's own of the file's metadata, without its name before them. ``quant`` is what the file's matrices are
    quantised to as they are cut (``model.quantization``), empty: nothing; ``tensors`` have the types that they get."""

    architecture: str
    name: str
    digest: str
    entries: dict[str, Entry]
    tensors: dict[str, TensorSpec]
    quant: str = ""
