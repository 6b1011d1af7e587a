"""What the environment says: folders, the join key, debugging. Read when asked, never at import.

``TPI_HOME`` puts everything below one folder; otherwise the XDG folders are used. No threads.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from tpi.config import Folders
from tpi.errors import UsageError

JOIN_KEY = "TPI_JOIN_KEY"
_HOME = "TPI_HOME"
_SPIN_COUNT = "1000"
_DEBUG = "TPI_DEBUG"


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
