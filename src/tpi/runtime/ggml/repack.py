"""ggml's rearranged weights: rows of some types interleaved so that matrix products run faster (``CPU_REPACK``).

The bytes of eight neighbouring rows change places among themselves only, so parts that are cut at multiples of eight
rows can be rearranged one by one, stored, and streamed like any others. Whether a tensor can be is ggml's decision.
Other extra buffer types (``AMX``) are never used. Owns a small ggml buffer; any thread, one at a time.
"""

import ctypes
from ctypes import c_char_p, c_size_t, c_void_p
from typing import Self

from tpi.errors import KernelError
from tpi.runtime.ggml.binding import InitParams, Tensor, ggml
from tpi.runtime.ggml.probe import kernels_key

_NAME = b"CPU_REPACK"
_BUFFER_BYTES = 4096
_CONTEXT_BYTES = 1 << 16


class Repacker:
    """Rearranges weights, and tells graphs that they are. A context manager; ``close`` is idempotent.

    Raises:
        KernelError: this build of ggml cannot rearrange weights.
    """

    def __init__(self) -> None:
        self._base = _declare(ggml().base)
        buffer_type = _find_buffer_type(self._base, ggml().cpu)
        if buffer_type is None:
            raise KernelError("this build of ggml has no CPU_REPACK: start without repacking")
        self._buffer: int | None = self._base.ggml_backend_buft_alloc_buffer(buffer_type, _BUFFER_BYTES)
        self._context: int = self._base.ggml_init(InitParams(_CONTEXT_BYTES, None, True))
        self._eligible: dict[tuple[int, int, int], bool] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._buffer is not None:
            self._base.ggml_free(self._context)
            self._base.ggml_backend_buffer_free(self._buffer)
            self._buffer = None

    @property
    def name(self) -> str:
        """Names the order of the bytes: it changes with library and CPU."""
        return f"cpu-repack-{kernels_key()}"

    def takes(self, type_id: int, n_columns: int, n_rows: int) -> bool:
        """Whether a matrix of this type and size can be rearranged."""
        key = (type_id, n_columns, n_rows)
        if key not in self._eligible:
            self._eligible[key] = bool(self._new_tensor(*key).extra)
        return self._eligible[key]

    def rearrange(self, type_id: int, n_columns: int, n_rows: int, source: memoryview, out: memoryview) -> None:
        """Writes the rearranged bytes of a whole matrix to ``out``, which is as long as ``source`` and not the same
        memory; only if :meth:`takes`.
        """
        tensor = self._new_tensor(type_id, n_columns, n_rows)
        assert tensor.extra and len(source) == len(out)
        tensor.data = _address(out)
        self._base.ggml_backend_tensor_set(ctypes.addressof(tensor), _address(source), 0, len(source))

    def mark(self, tensor: int) -> None:
        """Tells ggml that the weights of a graph's tensor are rearranged; only if :meth:`takes`."""
        described = Tensor.from_address(tensor)
        described.buffer = self._buffer
        self._base.ggml_backend_buffer_init_tensor(self._buffer, tensor)
        assert described.extra, "the kernels do not rearrange this matrix"

    def _new_tensor(self, type_id: int, n_columns: int, n_rows: int) -> Tensor:
        self._base.ggml_reset(self._context)
        address = self._base.ggml_new_tensor_2d(self._context, type_id, n_columns, n_rows)
        tensor = Tensor.from_address(address)
        tensor.buffer = self._buffer
        self._base.ggml_backend_buffer_init_tensor(self._buffer, address)
        return tensor


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _declare(base: ctypes.CDLL) -> ctypes.CDLL:
    functions: dict[str, tuple[object, list[object]]] = {
        "ggml_reset": (None, [c_void_p]),
        "ggml_backend_reg_dev_get": (c_void_p, [c_void_p, c_size_t]),
        "ggml_backend_reg_get_proc_address": (c_void_p, [c_void_p, c_char_p]),
        "ggml_backend_buft_name": (c_char_p, [c_void_p]),
        "ggml_backend_buft_alloc_buffer": (c_void_p, [c_void_p, c_size_t]),
        "ggml_backend_buffer_free": (None, [c_void_p]),
        "ggml_backend_buffer_init_tensor": (ctypes.c_int, [c_void_p, c_void_p]),
        "ggml_backend_tensor_set": (None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    }
    for name, (restype, argtypes) in functions.items():
        function = getattr(base, name)
        function.restype, function.argtypes = restype, argtypes
    return base


def _find_buffer_type(base: ctypes.CDLL, cpu: ctypes.CDLL) -> int | None:
    cpu.ggml_backend_cpu_reg.restype = c_void_p
    cpu.ggml_backend_cpu_reg.argtypes = []
    registry = cpu.ggml_backend_cpu_reg()
    address = base.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
    if not address:
        return None
    get_types = ctypes.CFUNCTYPE(ctypes.POINTER(c_void_p), c_void_p)(address)
    types = get_types(base.ggml_backend_reg_dev_get(registry, 0))
    index = 0
    while types and types[index]:
        if base.ggml_backend_buft_name(types[index]) == _NAME:
            return int(types[index] or 0)
        index += 1
    return None
