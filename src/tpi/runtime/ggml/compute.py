"""Runs graphs: the thread pool, the work buffer, the intermediates' buffer. One thread uses a ``Compute`` at a time."""

import ctypes
import mmap

from tpi.errors import KernelError
from tpi.runtime.ggml.binding import STATUS_SUCCESS, ComputePlan, ThreadpoolParams, ggml


class Compute:
    """Owns the threads and all memory that graphs need beside weights, KV cache and activations.

    A context manager; ``close`` is idempotent. Graphs of any number of block kinds share the buffer of intermediates,
    since they never run at the same time.
    """

    def __init__(self, n_threads: int) -> None:
        self._lib = ggml()
        params = ThreadpoolParams()
        self._lib.base.ggml_threadpool_params_init(ctypes.byref(params), n_threads)
        self._threadpool = self._lib.cpu.ggml_threadpool_new(ctypes.byref(params))
        self._allocator = self._lib.base.ggml_gallocr_new(self._lib.base.ggml_backend_cpu_buffer_type())
        self._work: mmap.mmap | None = None
        self._work_address = 0
        self._work_bytes = 0
        self.n_threads = n_threads

    def __enter__(self) -> "Compute":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._threadpool:
            self._lib.cpu.ggml_threadpool_free(self._threadpool)
            self._lib.base.ggml_gallocr_free(self._allocator)
            self._threadpool = self._allocator = None
            self._work = None

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the intermediates' buffer and the work buffer."""
        return int(self._lib.base.ggml_gallocr_get_buffer_size(self._allocator, 0)) + self._work_bytes

    def reserve(self, graph: int) -> None:
        """Makes the intermediates' buffer large enough for ``graph``; places nothing.

        Raises:
            KernelError: out of memory.
        """
        if not self._lib.base.ggml_gallocr_reserve(self._allocator, graph):
            raise KernelError("out of memory while reserving the graphs' intermediates: use a smaller --context")

    def place(self, graph: int) -> None:
        """Gives every intermediate of ``graph`` its address in the shared buffer.

        Raises:
            KernelError: out of memory, or the graph needs more than was reserved (which would move other graphs).
        """
        before = self._lib.base.ggml_gallocr_get_buffer_size(self._allocator, 0)
        placed = self._lib.base.ggml_gallocr_alloc_graph(self._allocator, graph)
        after = self._lib.base.ggml_gallocr_get_buffer_size(self._allocator, 0)
        if not placed or after != before:
            raise KernelError(f"a graph needs {after} bytes of intermediates, {before} were reserved")

    def plan(self, graph: int) -> ComputePlan:
        """How ``graph`` is run; grows the work buffer where needed (64-byte aligned, as kernels demand)."""
        plan: ComputePlan = self._lib.cpu.ggml_graph_plan(graph, self.n_threads, self._threadpool)
        if plan.work_size > self._work_bytes:
            self._work = mmap.mmap(-1, plan.work_size)
            self._work_address = ctypes.addressof(ctypes.c_char.from_buffer(self._work))
            self._work_bytes = plan.work_size
        return plan

    def run(self, graph: int, plan: ComputePlan) -> None:
        """Computes the graph; blocks, without the interpreter lock.

        Raises:
            KernelError: the kernels report a failure.
        """
        plan.work_data = self._work_address or None
        status = self._lib.cpu.ggml_graph_compute(graph, ctypes.byref(plan))
        if status != STATUS_SUCCESS:
            raise KernelError(f"the kernels failed with status {status}")
