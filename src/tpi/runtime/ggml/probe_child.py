"""The child process of ``probe``: computes small examples with the kernels and compares them with numpy.

Reads the names of the cases from standard input, writes ``try NAME`` before each and ``wrong NAME`` after one whose
result is off. A crash ends this process; that is what it is for. One thread: several would wait
for each other by spinning, which takes seconds on a busy device.
"""

import ctypes
import sys
from math import sqrt
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tpi.errors import KernelError
from tpi.gguf.types import F16, TYPES_BY_NAME, TensorType
from tpi.runtime.ggml.binding import PREC_F32, TYPE_F16, TYPE_F32, TYPE_I64, InitParams, Tensor, ggml
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.probe import ATTENTION, CACHED, REPACKED
from tpi.runtime.ggml.repack import Repacker

if sys.platform != "win32":
    import resource

_CONTEXT_BYTES = 16 << 20
_N_TOKENS = (1, 2, 8, 64)  # other kernels serve single rows, several, and 64 or more
_TOLERANCE = 0.02
"""Of the sum of the magnitudes: kernels of quantised types round the activations to 8 bits."""

_F16_ROUNDING, _F16_TINY = 2.0**-11, 2.0**-25
"""Half a step of 16-bit floats: of the value, and where values are small."""
_ROUNDING = {"Q8_0": 0.6 / 127, "Q4_0": 1.1 / 8}
"""Of a value in a cache, as a part of the largest of its block."""
"""Half a step of a block's 8-bit integers, and as much as 127 steps differ because the step is a 16-bit float."""

_Array = npt.NDArray[np.float32]


class Example:
    """A C context that owns its tensors' memory; computes one result."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self._base = ggml().base
        self._context = self._base.ggml_init(InitParams(_CONTEXT_BYTES, None, False))

    def __enter__(self) -> "Example":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._base.ggml_free(self._context)

    def call(self, name: str, *arguments: object) -> int:
        """Calls a function of ggml's that makes a tensor or graph in this context."""
        made: int = getattr(self._base, name)(self._context, *arguments)
        return made

    def tensor(self, type_id: int, columns: int, values: npt.NDArray[np.generic]) -> int:
        """A matrix with a copy of the bytes of ``values``, one row of ``columns`` elements after the other."""
        tensor = self.call("ggml_new_tensor_2d", type_id, columns, values.shape[0])
        ctypes.memmove(Tensor.from_address(tensor).data, values.tobytes(), values.nbytes)
        return tensor

    def rows(self, tensor: int, row_bytes: int) -> npt.NDArray[np.uint8]:
        """A copy of a matrix's bytes, [rows, row_bytes]."""
        made = Tensor.from_address(tensor)
        return np.frombuffer(ctypes.string_at(made.data, made.ne[1] * row_bytes), np.uint8).reshape(-1, row_bytes)

    def result(self, tensor: int, *before: int) -> _Array:
        """Computes ``tensor``, after other nodes, and returns a copy of its values, flat."""
        graph = self.call("ggml_new_graph_custom", 64, False)
        for node in (*before, tensor):
            self._base.ggml_build_forward_expand(graph, node)
        self._compute.run(graph, self._compute.plan(graph))
        made = Tensor.from_address(tensor)
        values = (ctypes.c_float * (made.ne[0] * made.ne[1] * made.ne[2])).from_address(made.data)
        return np.frombuffer(values, dtype=np.float32).copy()


def agrees(found: _Array, expected: _Array, magnitude: _Array) -> bool:
    """Whether all values are finite and as near as rounding permits; ``magnitude`` is the sum of absolute terms."""
    return bool(np.isfinite(found).all() and (np.abs(found - expected) <= _TOLERANCE * magnitude).all())


def try_product(compute: Compute, kind: TensorType, repacker: Repacker | None = None) -> bool:
    """Whether the product with a weight matrix of this type is right, for several numbers of rows; with ``repacker``
    its weights are rearranged, if they can be."""
    rows, columns = 64, 512
    random = np.random.default_rng(kind.id)
    # Bytes of this range make small, finite and different scales and values in every type.
    raw = random.integers(0x20, 0x3C, (rows, kind.row_bytes(columns)), dtype=np.uint8)
    weights = dequantise(kind, raw, columns)
    right = True
    for n_tokens in _N_TOKENS:
        inputs = random.standard_normal((n_tokens, columns), dtype=np.float32)
        with Example(compute) as example:
            weight = example.tensor(kind.id, columns, raw)
            if repacker is not None:
                if not repacker.takes(kind.id, columns, rows):
                    return True
                repacked = bytearray(raw.nbytes)
                repacker.rearrange(kind.id, columns, rows, memoryview(bytearray(raw.tobytes())), memoryview(repacked))
                ctypes.memmove(Tensor.from_address(weight).data, bytes(repacked), raw.nbytes)
                repacker.mark(weight)
            product = example.call("ggml_mul_mat", weight, example.tensor(TYPE_F32, columns, inputs))
            found = example.result(product).reshape(n_tokens, rows)
        right &= agrees(found, inputs @ weights.T, np.abs(inputs) @ np.abs(weights.T))
    return right


def dequantise(kind: TensorType, raw: npt.NDArray[np.uint8], columns: int) -> _Array:
    """The values, f32 [rows, columns], of the bytes of a matrix of this type."""
    if kind.id == TYPE_F32:
        return raw.view(np.float32)
    values = np.empty((raw.shape[0], columns), dtype=np.float32)
    traits = ggml().base.ggml_get_type_traits(kind.id).contents
    traits.to_float(raw.ctypes.data, values.ctypes.data, values.size)
    return values


def try_attention(compute: Compute, kind: TensorType) -> bool:
    """Whether flash attention over cells of this type is right, and what is written to them: grouped heads, a causal
    mask, several numbers of tokens."""
    return all(_attends(compute, kind, dim, n_tokens) for dim in (64, 128) for n_tokens in _N_TOKENS)


def _attends(compute: Compute, kind: TensorType, dim: int, n_tokens: int) -> bool:
    n_heads, n_kv_heads, n_kv = 4, 2, 256
    width, head_bytes = n_kv_heads * dim, kind.row_bytes(dim)
    random = np.random.default_rng(dim + n_tokens)
    queries = random.standard_normal((n_tokens, n_heads * dim), dtype=np.float32)
    keys, values = (random.standard_normal((n_kv, width), dtype=np.float32) for _ in range(2))
    order = random.permutation(n_kv)
    seen = np.arange(n_kv) <= np.arange(n_tokens)[:, None] + n_kv // 2
    mask = np.where(seen, 0.0, -np.inf).astype(np.float16)
    with Example(compute) as example:
        cells = example.tensor(TYPE_I64, n_kv, order[None].astype(np.int64))
        caches = [example.call("ggml_new_tensor_2d", kind.id, width, n_kv) for _ in range(2)]
        written = [
            example.call("ggml_set_rows", cache, example.tensor(TYPE_F32, width, rows[order]), cells)
            for cache, rows in zip(caches, (keys, values), strict=True)
        ]
        k, v = (
            example.call("ggml_view_3d", cache, dim, n_kv, n_kv_heads, n_kv_heads * head_bytes, head_bytes, 0)
            for cache in caches
        )
        q = example.call("ggml_reshape_3d", example.tensor(TYPE_F32, n_heads * dim, queries), dim, n_heads, n_tokens)
        q = example.call("ggml_permute", q, 0, 2, 1, 3)
        attention = example.call(
            "ggml_flash_attn_ext", q, k, v, example.tensor(TYPE_F16, n_kv, mask), 1 / sqrt(dim), 0.0, 0.0
        )
        ggml().base.ggml_prec_set_acc(attention, PREC_F32)
        found = example.result(attention, *written).reshape(n_tokens, n_heads, dim)
        kept = [dequantise(kind, example.rows(cache, kind.row_bytes(width)), width) for cache in caches]
    heads = np.repeat(np.arange(n_kv_heads), n_heads // n_kv_heads)
    k_seen, v_seen = (rows.reshape(n_kv, n_kv_heads, dim)[:, heads] for rows in kept)
    shares = attention_shares(queries.reshape(n_tokens, n_heads, dim), k_seen, seen)
    return (
        keeps(kind, kept[0], keys)
        and keeps(kind, kept[1], values)
        and agrees(found, attended(shares, v_seen), attended(shares, np.abs(v_seen)))
    )


def keeps(kind: TensorType, kept: _Array, values: _Array) -> bool:
    """Whether ``kept``, read from a cache of this type, are ``values`` but for the rounding: f32 [cells, width]."""
    if kind.id == TYPE_F16:
        rounding = np.abs(values) * _F16_ROUNDING + _F16_TINY
    else:
        blocks = np.abs(values.reshape(len(values), -1, kind.block_elements))
        rounding = np.repeat(blocks.max(axis=-1), kind.block_elements, axis=-1) * _ROUNDING[kind.name]
    return bool((np.abs(kept - values) <= rounding).all())


def attention_shares(queries: _Array, keys: _Array, seen: npt.NDArray[np.bool_]) -> _Array:
    """What part each token takes of each cell that it sees: f32 [n_tokens, n_heads, n_kv]."""
    scores = np.einsum("thd,chd->thc", queries, keys) / sqrt(queries.shape[-1])
    scores = np.where(seen[:, None], scores, -np.inf)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return np.asarray(shares, np.float32)


def attended(shares: _Array, values: _Array) -> _Array:
    """The cells' values by their shares: f32 [n_tokens, n_heads, head_dim]."""
    found: _Array = np.einsum("thc,chd->thd", shares, values)
    return found


def forbid_core_dumps() -> None:
    """A crash here is expected and answers the question; it shall leave no file behind."""
    if sys.platform != "win32":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Tries the cases that standard input names, separated by spaces."""
    forbid_core_dumps()
    with Compute(n_threads=1) as compute:
        for case in sys.stdin.read().split():
            print("try", case, flush=True)
            if not try_case(compute, case):
                print("wrong", case, flush=True)


def try_case(compute: Compute, case: str) -> bool:
    """Whether one of ``probe.CASES`` gives right results."""
    if case == ATTENTION:
        return try_attention(compute, F16)
    if case.startswith(CACHED):
        return try_attention(compute, TYPES_BY_NAME[case.removeprefix(CACHED)])
    if case.startswith(REPACKED):
        try:
            with Repacker() as repacker:
                return try_product(compute, TYPES_BY_NAME[case.removeprefix(REPACKED)], repacker)
        except KernelError:
            return True  # nothing can be rearranged, so nothing is
    return try_product(compute, TYPES_BY_NAME[case])


if __name__ == "__main__":
    main()
