"""The description of a model that every rank holds: dimensions, tensors, blocks and their slots. Data, no I/O.

A spec travels inside plans and shard headers, hence msgspec structs. Lists and tuples are in execution order.
"""

from enum import StrEnum

import msgspec

from tpi.gguf.types import TYPES_BY_ID, TensorType


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """A whole tensor: ``n_columns`` (contiguous) by ``n_rows`` values of the GGUF type ``type_id``."""

    name: str
    type_id: int
    n_columns: int
    n_rows: int

    @property
    def type(self) -> TensorType:
        return TYPES_BY_ID[self.type_id]


class Rope(msgspec.Struct, frozen=True):
    """Rotary embedding of pairs of neighbouring values; the fields are those of ggml's ``rope_ext``."""

    n_dims: int
    base: float
    frequency_scale: float = 1.0
    extrapolation: float = 0.0
    attention_factor: float = 1.0
    original_context: int = 0


class ModelSpec(msgspec.Struct, frozen=True):
    """A model's dimensions. ``digest`` names the model's bytes (see ``weights.identity``); ranks compare it."""

    architecture: str
    name: str
    digest: str
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_vocab: int
    n_context_train: int
    rms_eps: float
    rope: Rope
    embedding: TensorSpec
    tensors: dict[str, TensorSpec]

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads


class BlockKind(StrEnum):
    """What is scheduled as one: attention or FFN of a layer, or the output head."""

    ATTENTION = "attention"
    FFN = "ffn"
    HEAD = "head"


class Axis(StrEnum):
    """Along which axis a tensor is cut; ``COPY`` tensors go whole to every rank that holds part of the block."""

    ROWS = "rows"
    COLUMNS = "columns"
    COPY = "copy"


class Measure(StrEnum):
    """What a cut counts: the four kinds of ranges that a partition stores."""

    Q_HEADS = "q_heads"
    KV_HEADS = "kv_heads"
    FFN = "ffn"
    ROWS = "rows"


class Slot(msgspec.Struct, frozen=True):
    """A tensor's place in a block: its role in the graph, its axis, and ``step`` rows or columns per measure."""

    role: str
    tensor: TensorSpec
    axis: Axis
    measure: Measure | None = None
    step: int = 1


class Block(msgspec.Struct, frozen=True):
    """The unit that is scheduled. ``slots`` stand in the order in which the graph uses them."""

    index: int
    kind: BlockKind
    layer: int
    slots: tuple[Slot, ...]
