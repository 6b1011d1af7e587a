"""What one rank's memory is used for, decided before anything large is allocated. Pure arithmetic."""

from dataclasses import dataclass, fields

from tpi.errors import MemoryBudgetError

MASTER_GROWTH_BYTES = 8_000_000
WORKER_GROWTH_BYTES = 5_000_000
"""What a process grows by while it works, beside all that is planned: the kernels' code and stacks as they are first
used, graphs, TLS buffers, the interpreter's heap. Checked by tests that read the kernel's peak figure."""

JITTER_BYTES = 2_000_000
"""By so much may the next process's base be larger, with the same program and the same model; measured: up to 1 MB."""

_MIB = 1 << 20


@dataclass(frozen=True)
class Needs:
    """What a rank needs beside its window, in bytes, when everything is used to the full."""

    process_bytes: int
    """The process before the rest: interpreter, libraries, the model's description."""
    kv_bytes: int
    graphs_bytes: int
    """Intermediates of the kernels and their work buffer, and the graphs that are kept."""
    activations_bytes: int
    """Residual stream, sums, mask; on the master the embeddings of a pass, too."""
    links_bytes: int
    """Frames and payloads; 0 for a rank that is alone."""
    logits_bytes: int
    """The head's results, on the master those of all ranks."""
    growth_bytes: int
    """See ``MASTER_GROWTH_BYTES``."""
    states_bytes: int = 0
    """Recurrent states."""
    tokenizer_bytes: int = 0
    """Tokenizer and chat template; 0 where they are part of ``process_bytes``, and on workers."""

    @property
    def fixed_bytes(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class MemoryPlan:
    """How the memory is used. ``limit_bytes`` None: not limited, all weights stay resident."""

    needs: Needs
    window_bytes: int
    minimum_window_bytes: int
    """What the largest piece needs."""
    limit_bytes: int | None
    lendable_bytes: int = 0
    """Of the KV cache: weights that do not fit may use it until cells are written."""

    @property
    def total_bytes(self) -> int:
        """The peak that is to be expected."""
        return self.needs.fixed_bytes + self.window_bytes

    @property
    def minimum_bytes(self) -> int:
        """The smallest limit that works."""
        return minimum_bytes(self.needs, self.minimum_window_bytes)


def minimum_bytes(needs: Needs, minimum_window_bytes: int) -> int:
    """The smallest limit with which a rank of these needs works, in the next process, too."""
    return needs.fixed_bytes + minimum_window_bytes + JITTER_BYTES


def plan_memory(
    needs: Needs,
    minimum_window_bytes: int,
    full_window_bytes: int,
    limit_bytes: int | None,
    wanted_window_bytes: int | None,
) -> MemoryPlan:
    """Gives the window what the limits leave, at most ``full_window_bytes``, where everything is pinned.

    Raises:
        MemoryBudgetError: a limit is below the minimum, which the error names.
    """
    if wanted_window_bytes is not None and wanted_window_bytes < minimum_window_bytes:
        raise MemoryBudgetError(
            f"a window of {_mib(wanted_window_bytes)} is too small: the largest piece of this shard needs "
            f"{_mib(minimum_window_bytes, up=True)}"
        )
    window = full_window_bytes if wanted_window_bytes is None else min(wanted_window_bytes, full_window_bytes)
    if limit_bytes is not None:
        left = limit_bytes - needs.fixed_bytes
        if left < minimum_window_bytes:
            minimum = minimum_bytes(needs, minimum_window_bytes)
            process = needs.process_bytes + needs.growth_bytes + needs.tokenizer_bytes
            raise MemoryBudgetError(
                f"{_mib(limit_bytes)} of memory is too little: this rank needs at least {_mib(minimum, up=True)} "
                f"(process {_mib(process)}, KV cache {_mib(needs.kv_bytes + needs.states_bytes)}, graphs "
                f"{_mib(needs.graphs_bytes + needs.activations_bytes)}, links and logits "
                f"{_mib(needs.links_bytes + needs.logits_bytes)}, window {_mib(minimum_window_bytes)}); "
                "allow more, or use a shorter context or more devices"
            )
        window = min(window, left)
    is_lent = wanted_window_bytes is None and window < full_window_bytes
    return MemoryPlan(needs, window, minimum_window_bytes, limit_bytes, needs.kv_bytes if is_lent else 0)


def _mib(n_bytes: int, up: bool = False) -> str:
    if n_bytes < _MIB:
        return f"{-(-n_bytes // 1024)}KiB"
    return f"{-(-n_bytes // _MIB) if up else round(n_bytes / _MIB, 1):.10g}MiB"
