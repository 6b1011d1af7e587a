"""Heads of attention as the metadata of most architectures describe them."""

from collections.abc import Iterable
from dataclasses import dataclass

from tpi.model.blocks import Measure, Slot, measure_of
from tpi.model.metadata import Metadata
from tpi.model.spans import Span
from tpi.model.spec import Dimensions
from tpi.model.states import KvState
from tpi.model.tensors import Tensors


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

    def qkv(self, tensors: Tensors, at: str, n_embd: int, n_each: int = 1) -> tuple[Slot, Slot, Slot]:
        """The matrices of queries, keys and values, of a tensor each or fused in one; ``n_each`` times as many rows for
        queries as a head has.

        Raises:
            ModelFileError: a tensor is missing, or its shape is not the one.
        """
        fused, found, start = at + "attn_qkv.weight", list[Slot](), 0
        for role, n_rows, step, group in self._rows(n_each):
            if fused in tensors:
                shape = n_embd, sum(rows for _, rows, _, _ in self._rows(n_each))
                found.append(tensors.rows(role, fused, shape, step, group, rows=Span(start, start + n_rows)))
            else:
                found.append(tensors.rows(role, f"{at}attn_{role}.weight", (n_embd, n_rows), step, group))
            start += n_rows
        q, k, v = found
        return q, k, v

    def qkv_biases(self, tensors: Tensors, at: str) -> tuple[Slot, Slot, Slot]:
        """Their biases, likewise; raises as :meth:`qkv`."""
        fused, found, start = at + "attn_qkv.bias", list[Slot](), 0
        for role, n_rows, step, group in self._rows(1):
            if fused in tensors:
                n_all = sum(rows for _, rows, _, _ in self._rows(1))
                found.append(tensors.values(f"{role}_bias", fused, n_all, step, group, (start,)))
            else:
                found.append(tensors.values(f"{role}_bias", f"{at}attn_{role}.bias", n_rows, step, group))
            start += n_rows
        q, k, v = found
        return q, k, v

    def products(self, tensors: Tensors, at: str, n_embd: int) -> tuple[Slot, ...]:
        """The three matrices, each with its bias behind it where the file has biases; raises as :meth:`qkv`."""
        matrices = self.qkv(tensors, at, n_embd)
        if at + "attn_qkv.bias" not in tensors and at + "attn_q.bias" not in tensors:
            return matrices
        biases = self.qkv_biases(tensors, at)
        return tuple(slot for pair in zip(matrices, biases, strict=True) for slot in pair)

    def _rows(self, n_each: int) -> tuple[tuple[str, int, int, int], ...]:
        """Role, rows, rows of a head, and how many query heads share it."""
        dim, kv_rows = self.dim, self.n_kv * self.dim
        step = n_each * dim
        return ("q", self.n * step, step, 1), ("k", kv_rows, dim, self.group), ("v", kv_rows, dim, self.group)

    def measure(self, slots: Iterable[Slot]) -> Measure:
        """How a block is cut by these heads: between groups or, among more ranks, within them. It is the first of the
        block's measures."""
        return measure_of("heads", self.n, self.group, slots, fine=1)


def read_heads(meta: Metadata, dimensions: Dimensions, n_kv: int | None = None) -> Heads:
    """Heads whose keys are as long as their values, the same in every layer; ``n_kv``: of KV heads, where the file does
    not say the same of all layers.

    Raises:
        ModelFileError: an entry is missing or impossible.
    """
    n = meta.sole("attention.head_count")
    n_kv = n_kv or meta.sole("attention.head_count_kv", n)
    meta.require(n % n_kv == 0, "attention.head_count_kv", n_kv)
    dim = meta.integer("attention.key_length", dimensions.n_embd // n)
    meta.require(dim > 0 and dim % 2 == 0, "attention.key_length", dim)
    value_dim = meta.integer("attention.value_length", dim)
    meta.require(value_dim == dim, "attention.value_length", value_dim)
    return Heads(n, n_kv, dim)
