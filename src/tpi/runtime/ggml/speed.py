"""How fast this process multiplies matrices: tried with one small product, which leaves no memory behind.

Blocks for some hundredths of a second. The thread that computes later is the one to call it: it keeps its helpers.
"""

import ctypes
import mmap
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tpi.errors import KernelError
from tpi.gguf.types import TYPES_BY_ID, TYPES_BY_NAME, TensorType
from tpi.runtime.ggml.binding import TYPE_F32, InitParams, Tensor, ggml
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.probe import probe_kernels
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.layout import Piece

_N_COLUMNS, _N_ROWS, _N_TOKENS = 1024, 256, 128
_N_RUNS = 3
"""At least; the first wakes threads and memory up."""
_LIMIT_S = 0.02
_CONTEXT_BYTES = 1 << 14
_F32_BYTES = 4
_DEFAULT = TYPES_BY_NAME["Q4_0"]


def main_type(pieces: Sequence[Piece]) -> TensorType:
    """The type that most bytes of the pieces have; Q4_0 if there are none."""
    n_bytes: Counter[int] = Counter()
    for piece in pieces:
        for part in piece.parts:
            n_bytes[part.type_id] += part.n_bytes
    return TYPES_BY_ID[n_bytes.most_common(1)[0][0]] if n_bytes else _DEFAULT


def try_flop_per_s(kind: TensorType, n_threads: int, repack: bool, cache: Path) -> float:
    """Floating-point operations per second of a product of 128 tokens with weights of this type, rearranged if
    ``repack`` and the kernels can; 0 if they do not compute this type. ``cache`` is where it stands what they can.
    """
    try:
        report = probe_kernels(cache)
        report.require([kind.name])
        with ExitStack() as stack:
            repacker = None
            if repack and report.allows_repacked([kind.name]):
                repacker = _try_repacker(kind)
            if repacker is not None:
                stack.enter_context(repacker)
            return _measure(kind, stack.enter_context(Compute(n_threads)), repacker)
    except KernelError:
        return 0.0


def _try_repacker(kind: TensorType) -> Repacker | None:
    try:
        repacker = Repacker()
    except KernelError:
        return None
    if repacker.takes(kind.id, _N_COLUMNS, _N_ROWS):
        return repacker
    repacker.close()
    return None


def _measure(kind: TensorType, compute: Compute, repacker: Repacker | None) -> float:
    """From the fastest run: what else the device does at that moment is not of interest."""
    base = ggml().base
    sizes = (
        kind.row_bytes(_N_COLUMNS) * _N_ROWS,
        _F32_BYTES * _N_COLUMNS * _N_TOKENS,
        _F32_BYTES * _N_ROWS * _N_TOKENS,
    )
    memory = mmap.mmap(-1, sum(sizes))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    context = base.ggml_init(InitParams(_CONTEXT_BYTES, None, True))
    try:
        weights = base.ggml_new_tensor_2d(context, kind.id, _N_COLUMNS, _N_ROWS)
        inputs = base.ggml_new_tensor_2d(context, TYPE_F32, _N_COLUMNS, _N_TOKENS)
        if repacker is not None:
            repacker.mark(weights)
        product = base.ggml_mul_mat(context, weights, inputs)
        for tensor, size in zip((weights, inputs, product), sizes, strict=True):
            Tensor.from_address(tensor).data = address
            address += size
        graph = base.ggml_new_graph_custom(context, 8, False)
        base.ggml_build_forward_expand(graph, product)
        plan = compute.plan(graph)
        started, runs_s = time.perf_counter(), list[float]()
        while len(runs_s) < _N_RUNS or time.perf_counter() - started < _LIMIT_S:
            began = time.perf_counter()
            compute.run(graph, plan)
            runs_s.append(time.perf_counter() - began)
    finally:
        base.ggml_free(context)
    return 2 * _N_COLUMNS * _N_ROWS * _N_TOKENS / min(runs_s)
