"""The steps of attention: rotary embeddings, the KV cache, attention itself."""

from dataclasses import dataclass

from tpi.model.spans import Span
from tpi.model.states import KvState
from tpi.model.steps import Rope, RopeStyle, Temperature
from tpi.runtime.folding import rows_of
from tpi.runtime.ggml.binding import PREC_F32, ROPE_NEOX, ROPE_NORMAL, TYPE_F32, TYPE_I32, Tensor
from tpi.runtime.ggml.inputs import Group, data_pointer, new_tensor
from tpi.runtime.ggml.nodes import NodeBuilder, Place
from tpi.runtime.passes import BLOCK_CELLS


@dataclass(frozen=True)
class _Scores:
    """What becomes of them before the softmax; ``sinks`` is a tensor of one for every head."""

    scale: float
    softcap: float
    sinks: int | None


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
        q, scores = self.heads(q, state.head_dim), _Scores(scale, softcap, self._sole(sinks) if sinks else None)
        sight = self._shape.sight(state.window)
        if sight.groups:
            return self._attend_own(q, keys, values, to_values, scores)
        mask, group = self._inputs.mask(state.window), Group(1, self._shape.n_tokens, sight.n_kv, sight.fold)
        for heads, kv_heads in state.runs(self._held.share):
            seen_keys = self._see(keys, self.keys_pointers, kv_heads, state.head_dim, state.head_dim)
            seen_values = self._see(values, to_values, kv_heads, self._value_stride(), state.value_dim)
            if group.fold > 1:
                folded = self._look_folded(q, 0, group, heads, seen_keys, seen_values, mask, scores)
                attended = self._append(base.ggml_cont(self._context, folded))
                extents = state.value_dim, heads.size, self._shape.n_tokens
                attended = int(base.ggml_reshape_3d(self._context, attended, *extents))
            else:
                queries = base.ggml_permute(self._context, self.some_heads(q, heads.start, heads.size), 0, 2, 1, 3)
                attended = self._append(self._look(queries, seen_keys, seen_values, mask, scores, heads))
            result = self._append(base.ggml_concat(self._context, result, attended, 1)) if result else attended
        return result

    def _attend_own(self, q: int, keys: int, values: int, to_values: list[Place], scores: "_Scores") -> int:
        """The same where every sequence looks at its own cells: those of a group are gathered, one sequence's behind
        the other's, and attended to at once."""
        base, context, state, first = self._base, self._context, self._kv_state(), 0
        n_tokens, (_, n_heads) = self._shape.n_tokens, self._extents(q)[:2]
        address, row_bytes = self._inputs.attended, 4 * n_heads * state.value_dim
        for number, group in enumerate(self._shape.sight(state.window).groups):
            mask, result = self._inputs.group_mask(state.window, number), 0
            to_keys, to_own_values = self._inputs.gathered
            self._gather(keys, self.keys_pointers, number, to_keys)
            if state.is_latent:
                to_own_values = to_keys
            else:
                self._gather(values, to_values, number, to_own_values)
            for heads, kv_heads in state.runs(self._held.share):
                widths = self._extents(keys)[0], self._extents(values)[0]
                own_keys = self._own(to_keys, group, kv_heads, widths[0], (state.head_dim, state.head_dim))
                strides = self._value_stride(), state.value_dim
                own_values = self._own(to_own_values, group, kv_heads, widths[1], strides)
                if group.fold > 1:
                    folded = self._look_folded(q, first, group, heads, own_keys, own_values, mask, scores)
                    target = new_tensor(context, TYPE_F32, self._extents(folded), address + first * row_bytes)
                    result = self._append(base.ggml_cpy(context, folded, target))
                    continue
                queries = self._queries(q, heads, first, group)
                attended = self._look(queries, own_keys, own_values, mask, scores, heads)
                if heads.size == n_heads:
                    data_pointer(attended).value = address + first * row_bytes
                self._append(attended)
                result = self._append(base.ggml_concat(context, result, attended, 1)) if result else attended
            if data_pointer(result).value is None:
                target = new_tensor(context, TYPE_F32, self._extents(result), address + first * row_bytes)
                self._append(base.ggml_cpy(context, result, target))
            first += group.n_sequences * group.n_rows
        return new_tensor(context, TYPE_F32, (state.value_dim, n_heads, n_tokens), address)

    def _look(self, queries: int, keys: int, values: int, mask: int, scores: "_Scores", heads: Span) -> int:
        base = self._base
        attended = base.ggml_flash_attn_ext(
            self._context, queries, keys, values, mask, scores.scale, 0.0, scores.softcap
        )
        if scores.sinks is not None:
            base.ggml_flash_attn_ext_add_sinks(attended, self._some_sinks(scores.sinks, heads))
        base.ggml_prec_set_acc(attended, PREC_F32)
        return int(attended)

    def _look_folded(
        self, q: int, first: int, group: Group, heads: Span, keys: int, values: int, mask: int, scores: _Scores
    ) -> int:
        """The same for the rows of a group, from row ``first`` on, where ``fold`` heads are rows of one, which follow
        one another row by row: [value_dim, fold, n_heads / fold, n_rows * n_sequences], in another order."""
        base, context, fold = self._base, self._context, group.fold
        head_dim, n_heads, n_all = self._extents(q)[0], heads.size // fold, group.n_rows * group.n_sequences
        _, of_heads, of_rows, _ = Tensor.from_address(q).nb
        offset = heads.start * of_heads + first * of_rows
        extents, strides = (head_dim, fold, n_heads, n_all), (of_heads, fold * of_heads, of_rows)
        by_row = base.ggml_view_4d(context, q, *extents, *strides, offset)
        by_head = self._append(base.ggml_cont(context, base.ggml_permute(context, by_row, 0, 1, 3, 2)))
        n_folded, n_rows = fold * group.n_rows, rows_of(group.n_rows, fold)
        if n_rows > n_folded:
            few = base.ggml_reshape_3d(context, by_head, head_dim, n_folded, n_heads)
            queries = self._append(base.ggml_pad(context, few, 0, n_rows - n_folded, 0, 0))
        else:
            row_bytes = 4 * head_dim
            extents = head_dim, n_folded, n_heads, group.n_sequences
            strides = row_bytes, n_folded * group.n_sequences * row_bytes, n_folded * row_bytes
            queries = base.ggml_view_4d(context, by_head, *extents, *strides, 0)
        attended = self._append(self._look(queries, keys, values, mask, scores, heads))
        value_bytes = 4 * self._extents(attended)[0]
        extents = self._extents(attended)[0], n_heads, fold, n_all
        strides = value_bytes, n_heads * value_bytes, fold * n_heads * value_bytes
        by_row = base.ggml_view_4d(context, attended, *extents, *strides, 0)
        return int(base.ggml_permute(context, by_row, 0, 2, 1, 3))

    def _queries(self, q: int, heads: Span, first: int, group: Group) -> int:
        """Of the rows of a group, from row ``first`` on: [head_dim, n_rows, n_heads, n_sequences]."""
        _, of_heads, of_rows, _ = Tensor.from_address(q).nb
        extents = self._extents(q)[0], heads.size, group.n_rows, group.n_sequences
        strides, offset = (of_heads, of_rows, group.n_rows * of_rows), heads.start * of_heads + first * of_rows
        view = self._base.ggml_view_4d(self._context, q, *extents, *strides, offset)
        return int(self._base.ggml_permute(self._context, view, 0, 2, 1, 3))

    def _gather(self, cache: int, pointers: list[Place], number: int, address: int) -> None:
        """Copies the cells of a group's sequences to ``address``, as integers: the kernel changes no bit of them."""
        width, n_cells = self._extents(cache)[:2]
        n_integers = self._settings.kv_type.row_bytes(width) * BLOCK_CELLS // 4
        blocks = new_tensor(self._context, TYPE_I32, (n_integers, n_cells // BLOCK_CELLS))
        pointers.append(Place(data_pointer(blocks)))
        wanted = self._inputs.group_blocks(self._kv_state().window, number)
        gathered = int(self._base.ggml_get_rows(self._context, blocks, wanted))
        data_pointer(gathered).value = address
        self._append(gathered)

    def _own(self, address: int, group: Group, heads: Span, width: int, strides: tuple[int, int]) -> int:
        """Some heads of what was gathered, of ``strides``[0] values of which the first ``strides``[1] are wanted, as
        [head_dim, n_kv, n_heads, n_sequences]."""
        kind, (stride, head_dim) = self._settings.kv_type, strides
        cell_bytes, head_bytes = kind.row_bytes(width), kind.row_bytes(stride)
        extents = head_dim, group.n_kv, heads.size, group.n_sequences
        own = new_tensor(self._context, kind.id, extents, address + heads.start * head_bytes)
        tensor = Tensor.from_address(own)
        tensor.nb[1], tensor.nb[2], tensor.nb[3] = cell_bytes, head_bytes, group.n_kv * cell_bytes
        return own

    def _value_stride(self) -> int:
        """Values from head to head."""
        state = self._kv_state()
        return state.head_dim if state.is_latent else state.value_dim

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
        return self._shape.sight(self._kv_state().window).n_kv
