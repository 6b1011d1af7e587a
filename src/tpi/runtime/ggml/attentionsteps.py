"""The steps of attention: rotary embeddings, the KV cache, attention itself."""

from tpi.model.spans import Span
from tpi.model.states import KvState
from tpi.model.steps import Rope, RopeStyle, Temperature
from tpi.runtime.ggml.binding import PREC_F32, ROPE_NEOX, ROPE_NORMAL
from tpi.runtime.ggml.inputs import data_pointer, new_tensor
from tpi.runtime.ggml.nodes import NodeBuilder, Place


class AttentionSteps(NodeBuilder):
    """See ``NodeBuilder``."""

    keys_pointers: list[Place]
    """Where the address of the block's keys is written,"""
    values_pointers: list[Place]
    """and that of its values."""

    def rope(self, x: int, rope: Rope, head_dim: int, factors_role: str | None = None) -> int:
        factors = self._sole(factors_role) if factors_role else None
        style = ROPE_NEOX if rope.style is RopeStyle.NEOX else ROPE_NORMAL
        turned = self._base.ggml_rope_ext(
            self._context, self.heads(x, head_dim), self._inputs.positions, factors, rope.n_dims, style,
            rope.original_context, rope.base, rope.frequency_scale, rope.extrapolation, rope.attention_factor,
            rope.beta_fast, rope.beta_slow,
        )  # fmt: skip
        return self._append(turned)

    def tempered(self, x: int, temperature: Temperature) -> int:
        return self._append(self._base.ggml_mul(self._context, x, self._inputs.temperature(temperature)))

    def attention(
        self, q: int, k: int, v: int | None, scale: float, sinks: str | None = None, softcap: float = 0.0
    ) -> int:
        state = self._kv_state()
        keys = self._store(self.keys_pointers, k)
        values = keys if v is None else self._store(self.values_pointers, v)
        pointers = self.keys_pointers if state.is_latent else self.values_pointers
        return self._attend(q, keys, values, pointers, scale, sinks, softcap)

    def attention_again(self, q: int, scale: float, softcap: float = 0.0) -> int:
        keys, values = (
            self._cache(pointers, width)
            for pointers, width in zip(
                (self.keys_pointers, self.values_pointers), self._kv_state().widths(self._held.share), strict=True
            )
        )
        return self._attend(q, keys, values, self.values_pointers, scale, None, softcap)

    def _kv_state(self) -> KvState:
        assert isinstance(self._held.state, KvState)
        return self._held.state

    def _attend(
        self,
        q: int,
        keys: int,
        values: int,
        to_values: list[Place],
        scale: float,
        sinks: str | None,
        softcap: float,
    ) -> int:
        """Attention in runs of query heads that share KV heads alike; heads of all runs, [value_dim, n_heads,
        n_tokens]."""
        base, state, result = self._base, self._kv_state(), 0
        q, all_sinks = self.heads(q, state.head_dim), self._sole(sinks) if sinks else None
        mask = self._inputs.mask(state.window)
        for heads, kv_heads in state.runs(self._held.share):
            queries = base.ggml_permute(self._context, self.some_heads(q, heads.start, heads.size), 0, 2, 1, 3)
            seen_keys = self._see(keys, self.keys_pointers, kv_heads, state.head_dim, state.head_dim)
            stride = state.head_dim if state.is_latent else state.value_dim
            seen_values = self._see(values, to_values, kv_heads, stride, state.value_dim)
            attended = base.ggml_flash_attn_ext(
                self._context, queries, seen_keys, seen_values, mask, scale, 0.0, softcap
            )
            if all_sinks is not None:
                base.ggml_flash_attn_ext_add_sinks(attended, self._some_sinks(all_sinks, heads))
            base.ggml_prec_set_acc(attended, PREC_F32)
            self._append(attended)
            result = self._append(base.ggml_concat(self._context, result, attended, 1)) if result else attended
        return result

    def _some_sinks(self, sinks: int, heads: Span) -> int:
        if heads.size == self._extents(sinks)[0]:
            return sinks
        return self._alias(sinks, (heads.size,), 4 * heads.start)

    def _store(self, pointers: list[Place], x: int) -> int:
        """Writes rows to their cells; returns the cache, and where addresses in it are written."""
        n_tokens, extents = self._shape.n_tokens, self._extents(x)
        width = extents[0] * extents[1] * extents[2] // n_tokens
        rows = (
            x
            if extents[:3] == (width, n_tokens, 1)
            else self._base.ggml_reshape_2d(self._context, self._contiguous(x), width, n_tokens)
        )
        cache = self._cache(pointers, width)
        cells = self._inputs.cells(self._kv_state().window)
        written = self._append(self._base.ggml_set_rows(self._context, cache, rows, cells))
        pointers.append(Place(data_pointer(written)))
        return cache

    def _cache(self, pointers: list[Place], width: int) -> int:
        extents = width, self._settings.cells_of(self._kv_state().window)
        cache = new_tensor(self._context, self._settings.kv_type.id, extents)
        pointers.append(Place(data_pointer(cache)))
        return cache

    def _see(self, cache: int, pointers: list[Place], heads: Span, stride: int, head_dim: int) -> int:
        """The first ``head_dim`` values of some heads of ``stride`` values, as [head_dim, n_kv, n_heads]."""
        kind, width = self._settings.kv_type, self._extents(cache)[0]
        cell_bytes, head_bytes, n_kv = kind.row_bytes(width), kind.row_bytes(stride), self._n_kv()
        offset = heads.start * head_bytes
        seen = self._base.ggml_view_3d(self._context, cache, head_dim, n_kv, heads.size, cell_bytes, head_bytes, offset)
        pointers.append(Place(data_pointer(seen), offset))
        return int(seen)

    def _n_kv(self) -> int:
        return self._shape.n_kv(self._kv_state().window)
