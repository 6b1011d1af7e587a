"""The options that several verbs have, and how their texts become settings."""

import os
import re
import socket
from pathlib import Path
from typing import Annotated

import typer

from tpi.cluster.allreduce.mpi import Mpi
from tpi.cluster.pairing.connect import make_device_name
from tpi.config import AUTO, DEFAULT_CONTEXT, ContextSize, Resources, parse_bytes, parse_shares
from tpi.errors import UsageError
from tpi.model.quantization import QUANTS
from tpi.observe import available_memory_bytes

MIN_CONTEXT, MAX_CONTEXT = 16, 1 << 20
MAX_PINNED_BYTES = 1 << 22
_MAX_DEFAULT_THREADS = 8
_MAX_NAME = 63

Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What the process may use in all, e.g. 2GiB. [default: half of what is free]"),
]
Window = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="What the weights in memory may take. [default: what --memory leaves]"),
]
Threads = Annotated[
    int | None, typer.Option(min=1, max=512, help="Threads that compute. [default: the processor's cores, at most 8]")
]
Context = Annotated[
    str | None,
    typer.Option(
        metavar="TOKENS|auto",
        help="Tokens of all that is answered at once, or auto: what memory allows. [default: "
        f"{DEFAULT_CONTEXT}, or what the model was trained for if less]",
    ),
]
Shares = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", help="Each device's part, this one's first. [default: by memory]"),
]
Layout = Annotated[
    str | None,
    typer.Option(
        metavar="'LAYERS:DEVICE,… …'",
        help="Which devices hold which layers, as in '0-10:a 11-21:b,c'. [default: all hold a slice of every layer]",
    ),
]
Wire = Annotated[
    str,
    typer.Option(
        metavar="FORMAT", help="How partial sums travel: f32, f16, or int8, which is used where it is faster than f16."
    ),
]
Allreduce = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="How sums are added up: star, one-shot, two-shot, ring, tree, or mpi under mpiexec. [default: mpi there, "
        "otherwise what is fastest on these links]",
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write what every device did when, for https://ui.perfetto.dev; compressed if FILE ends with .gz.",
        dir_okay=False,
    ),
]
NoRepack = Annotated[
    bool,
    typer.Option(
        "--no-repack", help="Keep no second copy of the weights on disk, in the order that the kernels like best."
    ),
]
KvType = Annotated[
    str,
    typer.Option(
        metavar="TYPE",
        help="What the KV cache is made of: F16, Q8_0 (half of it), or Q4_0 (a quarter, which some models bear badly).",
    ),
]
Quant = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help=f"Quantise matrices in F32, F16 or BF16 as slices are cut: {', '.join(QUANTS)}. [default: as they are]",
    ),
]
Reproducible = Annotated[
    bool,
    typer.Option(
        "--reproducible", help="An answer does not depend, bit for bit, on who else is answered; slower. Sums in f32."
    ),
]
Pin = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A system prompt for the terminal's chats, which is read once and never dropped, for all chats with it.",
        dir_okay=False,
    ),
]
Name = Annotated[str | None, typer.Option(help="What this device is called. [default: its host name]")]


def read_resources(
    memory: str | None,
    window: str | None,
    threads: int | None,
    n_devices: int = 1,
    free_part: float = 0.5,
    repack: bool = True,
) -> Resources:
    """What each of ``n_devices`` ranks on this machine may use; without ``memory``, its part of ``free_part`` of what
    is free."""
    if memory is None:
        memory_bytes = int(available_memory_bytes() * free_part) // n_devices
    else:
        memory_bytes = _positive(memory, "--memory")
    return Resources(
        memory_bytes=memory_bytes,
        window_bytes=None if window is None else _positive(window, "--window"),
        n_threads=default_threads(n_devices) if threads is None else threads,
        repack=repack,
    )


def default_threads(n_devices: int = 1) -> int:
    """Compute threads per rank when ``n_devices`` ranks share this machine."""
    return min(_n_cores() // n_devices or 1, _MAX_DEFAULT_THREADS)


def read_context(text: str | None) -> ContextSize:
    """The setting that ``--context`` stands for."""
    if text is None:
        return None
    if text.lower() == AUTO:
        return AUTO
    if not text.isascii() or not text.isdigit() or not MIN_CONTEXT <= int(text[:20]) <= MAX_CONTEXT:
        raise UsageError(f"--context {text[:40]!r}: write a number from {MIN_CONTEXT} to {MAX_CONTEXT}, or auto")
    return int(text)


def read_pinned(file: Path | None, *, raw: bool = False) -> str:
    """The text of ``--pin`` without the end of its last line; empty if there is none.

    Raises:
        UsageError: it cannot be read, or is none.
    """
    if file is None:
        return ""
    if raw:
        raise UsageError("--pin is the beginning of chats: leave out --raw")
    try:
        if (n_bytes := file.stat().st_size) > MAX_PINNED_BYTES:
            raise UsageError(f"--pin {file}: it has {n_bytes:,} bytes, the limit is {MAX_PINNED_BYTES:,}")
        text = file.read_text("utf-8").rstrip("\r\n")
    except OSError as error:
        raise UsageError(f"--pin {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--pin {file}: it is not UTF-8") from error
    if not text.strip():
        raise UsageError(f"--pin {file}: it is empty")
    return text


def read_shares(text: str | None, n_ranks: int) -> tuple[float, ...] | None:
    """The ratios of ``--shares``, exactly one per rank."""
    if text is None:
        return None
    shares = parse_shares(text)
    if len(shares) != n_ranks:
        raise UsageError(
            f"--shares {text} has {len(shares)} numbers for {n_ranks} devices: write one each, this device's first"
        )
    return shares


def refuse_mpi(allreduce: str | None) -> None:
    """Raises:
    UsageError: sums are to go by MPI, which has not started this process.
    """
    if allreduce == Mpi.name:
        raise UsageError(f"--allreduce {Mpi.name}: it needs processes that MPI has started: mpiexec -n N tpi run ...")


def own_folder(folder: Path, name: str) -> Path:
    """A folder that can be written to, made if it is missing.

    Raises:
        UsageError: it cannot.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{name} {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{name} {folder}: nothing can be written there")
    return folder


def device_name(given: str | None) -> str:
    """The name that was given, or one made from this device's host name."""
    if given is None:
        return make_device_name(socket.gethostname().split(".")[0])
    if re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MAX_NAME - 1}}}", given) is None:
        raise UsageError(f"--name {given!r}: write up to {_MAX_NAME} letters, digits, dots, dashes, a letter first")
    return given


def _positive(text: str, name: str) -> int:
    n_bytes = parse_bytes(text, name)
    if n_bytes <= 0:
        raise UsageError(f"{name} {text}: must be more than nothing")
    return n_bytes


def _n_cores() -> int:
    """Physical cores that this process may use: two threads of one core only take turns in computing."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, _n_physical_cores() or usable)


def _n_physical_cores() -> int | None:
    cores = set()
    try:
        with open("/proc/cpuinfo") as file:
            package = ""
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "physical id":
                    package = value.strip()
                elif key.strip() == "core id":
                    cores.add((package, value.strip()))
    except OSError:
        return None
    return len(cores) or None
