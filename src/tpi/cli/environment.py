"""What the environment says: folders, the join key, debugging. Read when asked, never at import.

``TPI_HOME`` puts everything below one folder; otherwise the XDG folders are used. No threads.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tpi.config import Folders
from tpi.errors import UsageError

JOIN_KEY = "TPI_JOIN_KEY"
_HOME = "TPI_HOME"
_SPIN_COUNT = "1000"
_DEBUG = "TPI_DEBUG"
_MPI_PLACES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH, Intel MPI, MS-MPI
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK"),  # MVAPICH
    ("PMIX_RANK", "SLURM_NTASKS", "SLURM_LOCALID"),  # srun --mpi=pmix
)


@dataclass(frozen=True)
class MpiPlace:
    """Which of ``n`` processes this one is, 0 the first; and which of those on its machine."""

    number: int
    n: int
    number_here: int


def find_mpi_place(variables: Mapping[str, str] | None = None) -> MpiPlace | None:
    """This process's place among those that ``mpiexec`` has started with it, if it has."""
    variables = os.environ if variables is None else variables
    for names in _MPI_PLACES:
        rank, size, local = (variables.get(name, "") for name in names)
        if rank.isdecimal() and size.isdecimal() and int(size) > 1:
            return MpiPlace(int(rank), int(size), int(local if local.isdecimal() else rank))
    return None


def find_folders(variables: Mapping[str, str] | None = None) -> Folders:
    """Where this user's state, shards and cache belong. Creates nothing.

    Raises:
        UsageError: the user has no home folder.
    """
    variables = os.environ if variables is None else variables
    home = variables.get(_HOME)
    if home:
        root = Path(home).absolute()
        return Folders(state=root / "state", shards=root / "shards", cache=root / "cache")
    return Folders(
        state=_base(variables, "XDG_STATE_HOME", ".local/state") / "tpi",
        shards=_base(variables, "XDG_DATA_HOME", ".local/share") / "tpi" / "shards",
        cache=_base(variables, "XDG_CACHE_HOME", ".cache") / "tpi",
    )


def find_status_folder(variables: Mapping[str, str] | None = None) -> Path:
    """Where running masters have their status sockets."""
    variables = os.environ if variables is None else variables
    runtime = variables.get("XDG_RUNTIME_DIR", "")
    if not variables.get(_HOME) and os.path.isabs(runtime) and os.path.isdir(runtime):
        return Path(runtime) / "tpi"
    return find_folders(variables).state / "run"


def join_key() -> str | None:
    """The join key, if the environment has one."""
    return os.environ.get(JOIN_KEY) or None


def is_debugging() -> bool:
    """Whether tracebacks are wanted."""
    return bool(os.environ.get(_DEBUG))


def keep_waiting_short() -> None:
    """Lets compute threads that wait for each other sleep after some microseconds instead of spinning for milliseconds.

    Before the kernels are loaded. On quiet cores it costs nothing that could be measured; beside a busy process two
    threads computed up to half again as fast. What the user has set stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def child_variables() -> dict[str, str]:
    """The environment for ranks on this machine: ours, without another cluster's key."""
    return {name: value for name, value in os.environ.items() if name != JOIN_KEY}


def _base(variables: Mapping[str, str], name: str, fallback: str) -> Path:
    configured = variables.get(name, "")
    if os.path.isabs(configured):  # the XDG specification: anything else is to be ignored
        return Path(configured)
    try:
        return Path.home() / fallback
    except RuntimeError:
        raise UsageError(f"this user has no home folder: set {_HOME} to a folder for keys, shards and cache") from None
