"""Heads of attention as the metadata of most architectures describe them."""

from collections.abc import Iterable
from dataclasses import dataclass

from tpi.model.blocks import Measure, Slot, measure_of
from tpi.model.metadata import Metadata
from tpi.model.spec import Dimensions
from tpi.model.states import KvState


@dataclass(frozen=True)
class Heads:
    """``n`` query heads of ``dim`` values, ``group`` of which share a KV head."""

    n: int
    n_kv: int
    dim: int

    @property
    def group(self) -> int:
        return self.n // self.n_kv

    @property
    def state(self) -> KvState:
        """Keys and values of every KV head."""
        return KvState(self.dim, self.group, self.dim)

    def state_of(self, window: int) -> KvState:
        """The same where attention sees a window."""
        return KvState(self.dim, self.group, self.dim, window)

    def measure(self, slots: Iterable[Slot]) -> Measure:
        """How a block is cut by these heads: between groups or, among more ranks, within them. It is the first of the
        block's measures."""
        return measure_of("heads", self.n, self.group, slots, fine=1)


def read_heads(meta: Metadata, dimensions: Dimensions) -> Heads:
    """Heads whose keys are as long as their values, the same in every layer.

    Raises:
        ModelFileError: an entry is missing or impossible.
    """
    n = meta.sole("attention.head_count")
    n_kv = meta.sole("attention.head_count_kv", n)
    meta.require(n % n_kv == 0, "attention.head_count_kv", n_kv)
    dim = meta.integer("attention.key_length", dimensions.n_embd // n)
    meta.require(dim > 0 and dim % 2 == 0, "attention.key_length", dim)
    value_dim = meta.integer("attention.value_length", dim)
    meta.require(value_dim == dim, "attention.value_length", value_dim)
    return Heads(n, n_kv, dim)
