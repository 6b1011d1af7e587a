"""The steps of recurrences. A sequence's run of rows begins with the state that the rows before it left, and leaves its
own: read from one place, written to another."""

from collections.abc import Iterator

from tpi.model.spans import turned
from tpi.model.states import RecurrentState
from tpi.runtime.ggml.binding import TYPE_F32, Tensor
from tpi.runtime.ggml.inputs import data_pointer, new_tensor
from tpi.runtime.ggml.nodes import NodeBuilder, Place


class RecurrentSteps(NodeBuilder):
    """See ``NodeBuilder``."""

    entering: list[list[list[Place]]]
    """Of every run, of every part of the state: where the address of what is read is written,"""
    leaving: list[list[list[Place]]]
    """and that of what is written."""

    def causal_conv(self, x: int, role: str, part: int = 0) -> int:
        base, kernels = self._base, self._sole(role)
        n_kernel, n_channels = self._extents(kernels)[:2]
        result = self._contiguous(x) if len(self._shape.runs) > 1 else 0
        for run, (start, n_rows) in enumerate(self._runs()):
            before = self._entering(run, part, (n_kernel - 1, n_channels, 1))
            stride = Tensor.from_address(x).nb[1]
            rows = base.ggml_view_2d(self._context, x, n_channels, n_rows, stride, start * stride)
            columns = base.ggml_transpose(self._context, rows)
            window = self._append(base.ggml_concat(self._context, before, columns, 0))
            strides = Tensor.from_address(window).nb
            last = base.ggml_view_2d(self._context, window, n_kernel - 1, n_channels, strides[1], n_rows * strides[0])
            self._leave(run, part, last, (n_kernel - 1, n_channels))
            made = self._append(base.ggml_ssm_conv(self._context, window, kernels))
            result = self._put(result, made, start * 4 * n_channels)
        return result

    def delta_net(self, q: int, k: int, v: int, decay: int, beta: int) -> int:
        base = self._base
        dim, n_heads = self._extents(v)[:2]
        q, k = self._for_values(q), self._for_values(k)
        result = self._contiguous(v) if len(self._shape.runs) > 1 else 0
        for run, (start, n_rows) in enumerate(self._runs()):
            state = self._entering(run, 1, (dim, dim, n_heads, 1))
            q_rows, k_rows, v_rows = (self._some_rows(x, start, n_rows) for x in (q, k, v))
            gates = (self._gates(x, start, n_rows) for x in (decay, beta))
            made = self._append(base.ggml_gated_delta_net(self._context, q_rows, k_rows, v_rows, *gates, state, 1))
            head_bytes = 4 * dim
            left = base.ggml_view_3d(
                self._context, made, dim, dim, n_heads, head_bytes, head_bytes * dim, head_bytes * n_heads * n_rows
            )
            self._leave(run, 1, left, (dim, dim, n_heads))
            heads = base.ggml_view_3d(self._context, made, dim, n_heads, n_rows, head_bytes, head_bytes * n_heads, 0)
            result = self._put(result, heads, start * head_bytes * n_heads)
        return result

    def state_space(self, x: int, dt: int, decay_role: str, write: int, read: int, part: int) -> int:
        base, context, decay = self._base, self._context, self._sole(decay_role)
        dim, n_heads = self._extents(x)[:2]
        n_state, head_bytes = self._extents(write)[0], 4 * dim
        dt = self._contiguous(dt)
        result = self._append(base.ggml_cont(context, x)) if len(self._shape.runs) > 1 else 0
        for run, (start, n_rows) in enumerate(self._runs()):
            state = self._entering(run, part, (n_state, dim, n_heads, 1))
            x_rows, written, seen = (self._some_rows(values, start, n_rows) for values in (x, write, read))
            steps = base.ggml_view_2d(context, dt, n_heads, n_rows, 4 * n_heads, 4 * n_heads * start)
            first = base.ggml_view_2d(context, self._inputs.zeros, 1, 1, 4, 0)
            made = self._append(base.ggml_ssm_scan(context, state, x_rows, steps, decay, written, seen, first, 1))
            extents, strides = (n_state, dim, n_heads), (4 * n_state, 4 * n_state * dim)
            left = base.ggml_view_3d(context, made, *extents, *strides, head_bytes * n_heads * n_rows)
            self._leave(run, part, left, extents)
            heads = base.ggml_view_3d(context, made, dim, n_heads, n_rows, head_bytes, head_bytes * n_heads, 0)
            result = self._put(result, heads, start * head_bytes * n_heads)
        return result

    def _put(self, rows: int, made: int, offset: int) -> int:
        """``rows`` with what was made of a run at ``offset`` bytes, in their place: with runs of any lengths the
        intermediates take the same. ``rows`` is 0 where the run is all."""
        if not rows:
            return made
        strides = Tensor.from_address(rows).nb[1:4]
        return self._append(self._base.ggml_set_inplace(self._context, rows, made, *strides, offset))

    def _for_values(self, x: int) -> int:
        """Key heads so that value head i looks at head i modulo their number: as they are, or, where the rank has a
        part of a key head's value heads, one for each."""
        state, span = self._held.state, self._held.share.first
        assert isinstance(state, RecurrentState)
        if span.start % state.group == 0 and span.stop % state.group == 0:
            return x
        first, result = span.start // state.group, 0
        for turn in range(state.group):
            heads = turned(span, turn, state.group)
            if heads.size > 0:
                some = self.some_heads(x, heads.start - first, heads.size)
                result = self._append(self._base.ggml_concat(self._context, result, some, 1)) if result else some
        return result

    def _runs(self) -> Iterator[tuple[int, int]]:
        """First row and length of every sequence's run."""
        start = 0
        for n_rows in self._shape.runs:
            yield start, n_rows
            start += n_rows

    def _some_rows(self, x: int, start: int, n_rows: int) -> int:
        """Of heads, those of some rows."""
        tensor = Tensor.from_address(x)
        width, n_heads, n_tokens = tensor.ne[:3]
        if n_rows == n_tokens:
            return x
        strides = tensor.nb[1], tensor.nb[2]
        return int(self._base.ggml_view_3d(self._context, x, width, n_heads, n_rows, *strides, start * strides[1]))

    def _gates(self, x: int, start: int, n_rows: int) -> int:
        """One number for every head: of some rows, [1, n_heads, n_rows]."""
        n_heads = self._extents(x)[0]
        stride = 4 * n_heads
        return int(self._base.ggml_view_3d(self._context, x, 1, n_heads, n_rows, 4, stride, start * stride))

    def _entering(self, run: int, part: int, extents: tuple[int, ...]) -> int:
        tensor = new_tensor(self._context, TYPE_F32, extents)
        self.entering[run][part].append(Place(data_pointer(tensor)))
        return tensor

    def _leave(self, run: int, part: int, values: int, extents: tuple[int, ...]) -> None:
        tensor = new_tensor(self._context, TYPE_F32, extents)
        copied = self._append(self._base.ggml_cpy(self._context, values, tensor))
        self.leaving[run][part] += [Place(data_pointer(tensor)), Place(data_pointer(copied))]
