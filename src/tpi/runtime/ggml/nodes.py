"""Makes ggml nodes: weights by piece, products, sums, norms, shapes. What kinds of steps need more is in files of their
own (``attentionsteps``, ``recurrentsteps``, ``expertsteps``), which build on this.

Allocates nothing but tensors' descriptions, in a C context that the caller owns. One thread.
"""

import ctypes
from dataclasses import dataclass

from tpi.model.numbers import inverse
from tpi.model.spans import Span
from tpi.model.states import KvState
from tpi.model.steps import Activation, Unary, Ungated, Xielu
from tpi.model.tensors import bias_of, scale_of
from tpi.runtime.ggml.binding import Tensor, ggml
from tpi.runtime.ggml.held import GraphSettings, Held
from tpi.runtime.ggml.inputs import BatchShape, Inputs, data_pointer, new_tensor
from tpi.weights.layout import Part
from tpi.weights.shards.repacking import repacks

_SWIGLU_OAI = 1.702, 7.0
"""Slope and bound of gpt-oss's activation."""


@dataclass(frozen=True)
class Place:
    """Where an address is written, with so many bytes added: that of a part of the weights, or of a state."""

    pointer: ctypes.c_void_p
    offset: int = 0


class NodeBuilder:
    """Every node is appended to ``graph`` at once, so node order is call order."""

    def __init__(
        self,
        held: Held,
        shape: BatchShape,
        settings: GraphSettings,
        context: int,
        graph: int,
        inputs: Inputs,
    ) -> None:
        self._held, self._shape, self._settings, self._context = held, shape, settings, context
        self._base, self._graph, self._inputs = ggml().base, graph, inputs
        self._weights: dict[str, list[tuple[int, int]]] = {}
        self._places: dict[int, list[Place]] = {}
        self.starts = [self.n_nodes]
        """From which node of the graph on each piece is needed, and those before it are not."""
        self._parts: list[list[int]] = []
        for number, piece in enumerate(held.pieces):
            tensors = [self._weight(part) for part in piece.parts]
            for part, tensor in zip(piece.parts, tensors, strict=True):
                self._weights.setdefault(part.role, []).append((number, tensor))
            self._parts.append(tensors)

    @property
    def part_places(self) -> list[tuple[tuple[Place, ...], ...]]:
        """Where the address of each part is written, for every piece."""
        return [tuple(tuple(self._places[tensor]) for tensor in tensors) for tensors in self._parts]

    @property
    def n_nodes(self) -> int:
        return int(self._base.ggml_graph_n_nodes(self._graph))

    def _weight(self, part: Part) -> int:
        tensor = new_tensor(self._context, part.type_id, (part.n_columns, part.n_rows))
        repacker = self._settings.repacker
        if repacker is not None and repacks(repacker, part):
            repacker.mark(tensor)
        self._places[tensor] = [Place(data_pointer(tensor))]
        return tensor

    def _alias(self, weight: int, extents: tuple[int, ...], offset: int = 0) -> int:
        """A part of a weight with another shape. A view would keep the address that the weight has now."""
        tensor = new_tensor(self._context, Tensor.from_address(weight).type, extents)
        self._places[weight].append(Place(data_pointer(tensor), offset))
        return tensor

    def _enter(self, piece: int) -> None:
        """From the next node on, ``piece`` is needed and the ones before it are not."""
        assert piece >= len(self.starts) - 1, "a block's slots must stand in the order in which its graph uses them"
        while len(self.starts) <= piece:
            self.starts.append(self.n_nodes)

    def _append(self, tensor: int) -> int:
        self._base.ggml_build_forward_expand(self._graph, tensor)
        return tensor

    def _sole(self, role: str) -> int:
        """The weight that lies in one piece, from now on needed."""
        [(piece, weight)] = self._weights[role]
        self._enter(piece)
        return weight

    def has(self, role: str) -> bool:
        return role in self._weights

    def can_exceed(self, n_tokens: int) -> bool:
        return self._settings.n_positions > n_tokens

    def is_first(self) -> bool:
        return self._held.is_first

    # Products, sums, norms.

    def matmul(self, role: str, x: int) -> int:
        result = 0
        for piece, weight in self._weights[role]:
            self._enter(piece)
            rows = self._append(self._product(weight, x))
            result = self._append(self._base.ggml_concat(self._context, result, rows, 0)) if result else rows
        return self.times(result, scale_of(role)) if self.has(scale_of(role)) else result

    def biased(self, role: str, x: int) -> int:
        made = self.matmul(role, x)
        return self.plus(made, bias_of(role)) if self.has(bias_of(role)) else made

    def _product(self, weight: int, x: int) -> int:
        """An expert's is computed by the kernel for experts, which sums in another order than the one for matrices."""
        if not self._held.is_expert:
            return self._rows_apart(weight, x) if self._settings.is_reproducible else self._together(weight, x)
        n_columns, n_rows = self._extents(weight)[:2]
        rows = self._base.ggml_reshape_3d(self._context, self._contiguous(x), n_columns, 1, self._shape.n_tokens)
        made = self._append(self._base.ggml_mul_mat_id(self._context, weight, rows, self._inputs.zeros))
        return int(self._base.ggml_reshape_2d(self._context, made, n_rows, self._shape.n_tokens))

    def _together(self, weight: int, x: int) -> int:
        return int(self._base.ggml_mul_mat(self._context, weight, x))

    def _rows_apart(self, weight: int, x: int) -> int:
        """The kernel's choice goes by how many rows there are in a plane: here every row is one. The planes share the
        weights, and are computed in turns over a few rows of these."""
        n_columns, n_rows = self._extents(weight)[:2]
        n_tokens = self._extents(x)[1]
        planes = self._base.ggml_reshape_3d(self._context, self._contiguous(x), n_columns, 1, n_tokens)
        made = self._append(self._base.ggml_mul_mat(self._context, weight, planes))
        return int(self._base.ggml_reshape_2d(self._context, made, n_rows, n_tokens))

    def matmul_heads(self, role: str, x: int) -> int:
        base, weight = self._base, self._sole(role)
        width, n_heads, n_tokens, _ = self._extents(x)
        n_columns, n_rows = self._extents(weight)[:2]
        matrices = self._alias(weight, (n_columns, n_rows // n_heads, n_heads))
        if self._settings.is_reproducible:
            planes = base.ggml_reshape_4d(self._context, self._contiguous(x), width, 1, n_heads, n_tokens)
            made = self._append(base.ggml_mul_mat(self._context, matrices, planes))
            return int(base.ggml_reshape_3d(self._context, made, n_rows // n_heads, n_heads, n_tokens))
        rows = base.ggml_permute(self._context, x, 0, 2, 1, 3)
        made = self._append(base.ggml_mul_mat(self._context, matrices, rows))
        return int(base.ggml_permute(self._context, made, 0, 2, 1, 3))

    def plus(self, x: int, role: str) -> int:
        return self._append(self._base.ggml_add(self._context, x, self._sole(role)))

    def times(self, x: int, role: str) -> int:
        return self._append(self._base.ggml_mul(self._context, x, self._sole(role)))

    def add(self, x: int, y: int) -> int:
        return self._append(self._base.ggml_add(self._context, x, y))

    def multiply(self, x: int, y: int) -> int:
        return self._append(self._base.ggml_mul(self._context, x, y))

    def scale(self, x: int, factor: float) -> int:
        return x if factor == 1.0 else self._append(self._base.ggml_scale(self._context, x, factor))

    def apply(self, function: Ungated, x: int) -> int:
        if isinstance(function, Xielu):
            numbers = function.alpha_n, function.alpha_p, function.beta, function.eps
            return self._append(self._base.ggml_xielu(self._context, self._contiguous(x), *numbers))
        if function is Unary.SQUARED_RELU:
            bounded = self._append(self._base.ggml_relu(self._context, x))
            return self._append(self._base.ggml_sqr(self._context, bounded))
        return self._append(getattr(self._base, f"ggml_{function.value}")(self._context, x))

    def gated(self, activation: Activation, gate: int, up: int) -> int:
        if activation is Activation.SWIGLU_OAI:
            return self._append(self._base.ggml_swiglu_oai(self._context, gate, up, *_SWIGLU_OAI))
        function = getattr(self._base, f"ggml_{activation.value}_split")
        return self._append(function(self._context, gate, up))

    def rms_norm(self, x: int, role: str | None, eps: float) -> int:
        normed = self._base.ggml_rms_norm(self._context, x, eps)
        return self._append(normed) if role is None else self.times(normed, role)

    def square_sums(self, x: int, state: KvState | None = None) -> int:
        squares, total = self._append(self._base.ggml_mul(self._context, x, x)), 0
        width, n_rows = self._extents(squares)[:2]
        runs = [(Span(0, 1), Span(0, 1))] if state is None else state.runs(self._held.share)
        head_dim, group = (width, 1) if state is None else (state.head_dim, state.group)
        for heads, kv_heads in runs:
            some, offset = kv_heads.size * head_dim, 4 * kv_heads.start * head_dim
            view = self._base.ggml_view_2d(self._context, squares, some, n_rows, 4 * width, offset)
            added = self._append(self._base.ggml_sum_rows(self._context, view))
            if heads.size != kv_heads.size * group:
                added = self.scale(added, heads.size / (kv_heads.size * group))
            total = self.add(total, added) if total else added
        return total

    def rms_scaled(self, x: int, square_sums: int, n: int, eps: float, role: str) -> int:
        if self._extents(x)[0] == n:
            return self.rms_norm(x, role, eps)
        base, context = self._base, self._context
        means = base.ggml_scale_bias(context, self._contiguous(square_sums), inverse(n), eps)
        roots = self._append(base.ggml_sqrt(context, means))
        factors = base.ggml_div(context, base.ggml_fill(context, roots, 1.0), roots)
        return self.times(self.multiply(x, factors), role)

    def layer_norm(self, x: int, role: str, eps: float) -> int:
        return self.times(self._base.ggml_norm(self._context, x, eps), role)

    # Shapes.

    def heads(self, x: int, head_dim: int) -> int:
        """``x`` with the shape [head_dim, n_heads, n_tokens]."""
        width, _, last, _ = self._extents(x)
        if width == head_dim and last == self._shape.n_tokens:
            return x
        return int(
            self._base.ggml_reshape_3d(
                self._context, self._contiguous(x), head_dim, width // head_dim, self._shape.n_tokens
            )
        )

    def rows(self, x: int) -> int:
        head_dim, n_heads, n_tokens, _ = self._extents(x)
        return int(self._base.ggml_reshape_2d(self._context, self._contiguous(x), head_dim * n_heads, n_tokens))

    def some(self, x: int, first: int, width: int) -> int:
        """A view: of rows [width, n_tokens], of heads [width, n_heads, n_tokens]."""
        tensor = Tensor.from_address(x)
        extents, strides = tensor.ne, tensor.nb
        if width == extents[0]:
            return x
        offset = first * strides[0]
        if extents[2] == 1:
            return int(self._base.ggml_view_2d(self._context, x, width, extents[1], strides[1], offset))
        return int(
            self._base.ggml_view_3d(self._context, x, width, extents[1], extents[2], strides[1], strides[2], offset)
        )

    def n_heads(self, x: int) -> int:
        return self._extents(x)[1]

    def some_heads(self, x: int, first: int, n_heads: int) -> int:
        """A view, [head_dim, n_heads, n_tokens]."""
        tensor = Tensor.from_address(x)
        head_dim, n_all, n_tokens = tensor.ne[:3]
        if n_heads == n_all:
            return x
        offset, strides = first * tensor.nb[1], (tensor.nb[1], tensor.nb[2])
        return int(self._base.ggml_view_3d(self._context, x, head_dim, n_heads, n_tokens, *strides, offset))

    def join(self, x: int, y: int) -> int:
        return self._append(self._base.ggml_concat(self._context, x, y, 0))

    def repeat_head(self, x: int, like: int) -> int:
        n_heads, n_tokens = self._extents(like)[1:3]
        one, width = self.heads(x, self._extents(x)[0]), self._extents(x)[0]
        return self._append(self._base.ggml_repeat_4d(self._context, one, width, n_heads, n_tokens, 1))

    def repeat_heads(self, x: int, n: int) -> int:
        width, n_heads, n_tokens = self._extents(x)[:3]
        if n == 1:
            return x
        apart = self._base.ggml_reshape_4d(self._context, self._contiguous(x), width, 1, n_heads, n_tokens)
        many = self._append(self._base.ggml_repeat_4d(self._context, apart, width, n, n_heads, n_tokens))
        return int(self._base.ggml_reshape_3d(self._context, many, width, n * n_heads, n_tokens))

    def _contiguous(self, x: int) -> int:
        is_contiguous = bool(self._base.ggml_is_contiguous(x))
        return x if is_contiguous else self._append(self._base.ggml_cont(self._context, x))

    def _extents(self, tensor: int) -> tuple[int, ...]:
        return tuple(Tensor.from_address(tensor).ne)
