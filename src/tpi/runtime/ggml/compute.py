"""Runs graphs: the thread pool, the work buffer, the intermediates' buffer. One thread uses a ``Compute`` at a time."""

import ctypes
import mmap
import sys
from collections.abc import Sequence

from tpi.errors import Cancelled, KernelError, MemoryBudgetError
from tpi.runtime.ggml.binding import STATUS_ABORTED, STATUS_SUCCESS, ComputePlan, ThreadpoolParams, ggml


class Compute:
    """Owns the threads and all memory that graphs need beside weights, KV cache and activations.

    A context manager; ``close`` is idempotent. Graphs of any number of block kinds share a buffer of intermediates,
    since they never run at the same time; with several lanes there is one buffer for each, so that a graph can be begun
    while one of another lane is not done. ``abort``, which any thread may call, ends a run between two nodes.
    """

    def __init__(self, n_threads: int, n_lanes: int = 1, *, is_reproducible: bool = False) -> None:
        """``is_reproducible``: by kernels whose results depend on nothing but their operands' rows."""
        self._lib = ggml()
        params = ThreadpoolParams()
        self._lib.base.ggml_threadpool_params_init(ctypes.byref(params), n_threads)
        self._threadpool = self._lib.cpu.ggml_threadpool_new(ctypes.byref(params))
        buffer_type = self._lib.base.ggml_backend_cpu_buffer_type()
        self._allocators = [self._lib.base.ggml_gallocr_new(buffer_type) for _ in range(n_lanes)]
        self._abort = AbortFlag()
        self._work: mmap.mmap | None = None
        self._work_address = 0
        self._work_bytes = 0
        self.n_threads = n_threads
        self._is_reproducible = is_reproducible

    def __enter__(self) -> "Compute":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._threadpool:
            self._lib.cpu.ggml_threadpool_free(self._threadpool)
            for allocator in self._allocators:
                self._lib.base.ggml_gallocr_free(allocator)
            self._threadpool, self._allocators = None, []
            self._work = None

    @property
    def scratch_bytes(self) -> int:
        """Bytes of the intermediates' buffers and the work buffer."""
        sizes = (self._lib.base.ggml_gallocr_get_buffer_size(allocator, 0) for allocator in self._allocators)
        return sum(map(int, sizes)) + self._work_bytes

    def abort(self) -> None:
        """Ends what runs now or next; from any thread. ``allow`` takes it back."""
        self._abort.raise_flag()

    def allow(self) -> None:
        """Lets graphs run again."""
        self._abort.lower()

    def reserve(self, graph: int, lane: int = 0) -> None:
        """Makes the lane's buffer of intermediates large enough for ``graph``; places nothing.

        Raises:
            KernelError: out of memory.
        """
        if not self._lib.base.ggml_gallocr_reserve(self._allocators[lane], graph):
            raise KernelError("out of memory while reserving the graphs' intermediates: use a shorter context")

    def place(self, graph: int, lane: int = 0) -> None:
        """Gives every intermediate of ``graph`` its address in the lane's buffer.

        Raises:
            KernelError: out of memory, or the graph needs more than was reserved (which would move other graphs).
        """
        allocator = self._allocators[lane]
        before = self._lib.base.ggml_gallocr_get_buffer_size(allocator, 0)
        placed = self._lib.base.ggml_gallocr_alloc_graph(allocator, graph)
        after = self._lib.base.ggml_gallocr_get_buffer_size(allocator, 0)
        if not placed or after != before:
            raise KernelError(f"a graph needs {after} bytes of intermediates, {before} were reserved")

    def plan(self, graph: int) -> ComputePlan:
        """How ``graph`` is run; grows the work buffer where needed (64-byte aligned, as kernels demand).

        Raises:
            MemoryBudgetError: the system does not give the memory for it.
        """
        plan: ComputePlan = self._lib.cpu.ggml_graph_plan(graph, self.n_threads, self._threadpool)
        if plan.work_size > self._work_bytes:
            self._work = _allocate(plan.work_size)
            self._work_address = ctypes.addressof(ctypes.c_char.from_buffer(self._work))
            self._work_bytes = plan.work_size
        plan.use_ref = self._is_reproducible
        plan.abort_callback, plan.abort_callback_data = self._abort.callback, self._abort.data
        return plan

    @property
    def function_address(self) -> int | None:
        """Of what runs a graph by a plan, for C: a status, 0 if all is well."""
        return ctypes.cast(self._lib.cpu.ggml_graph_compute, ctypes.c_void_p).value

    def prepare(self, plans: Sequence[ComputePlan]) -> None:
        """Lets C run graphs by these plans."""
        for plan in plans:
            plan.work_data = self._work_address or None

    def run(self, graph: int, plan: ComputePlan) -> None:
        """Computes the graph; blocks, without the interpreter lock.

        Raises:
            Cancelled: ``abort`` was called.
            KernelError: the kernels report a failure.
        """
        plan.work_data = self._work_address or None
        status = self._lib.cpu.ggml_graph_compute(graph, ctypes.byref(plan))
        if status == STATUS_ABORTED:
            raise Cancelled("the computation was stopped")
        if status != STATUS_SUCCESS:
            raise KernelError(f"the kernels failed with status {status}")


def _allocate(n_bytes: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, n_bytes)
    except OSError as error:
        raise MemoryBudgetError(
            f"no room for {n_bytes:,} bytes that the kernels work in ({error.strerror}): use a shorter context, "
            "or end other programs"
        ) from error


class AbortFlag:
    """A flag that the kernels look at between two nodes, on one thread, without Python: their callback is the C
    library's ``strlen``, and the flag a text that is empty or not."""

    def __init__(self) -> None:
        self._text = ctypes.create_string_buffer(2)
        library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
        self.callback = ctypes.cast(library.strlen, ctypes.c_void_p).value
        self.data = ctypes.addressof(self._text)

    def raise_flag(self) -> None:
        self._text[0] = b"!"

    def lower(self) -> None:
        self._text[0] = b"\0"
