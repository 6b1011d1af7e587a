"""Keys that people must be told: shown on a terminal, kept out of logs. Main thread."""

import sys
from pathlib import Path

from tpi.cluster.pairing.storage import make_private_folder, write_private


def keep_from_log(name: str, secret: str, state: Path) -> Path | None:
    """The file ``name`` in the folder ``state`` that ``secret`` was written to, readable by its owner alone; None
    where standard error is a terminal, which may show it.

    Raises:
        PairingError: the folder cannot be made.
        DiskSpaceError: the file cannot be written.
    """
    if sys.stderr.isatty():
        return None
    make_private_folder(state)
    write_private(state / name, secret.encode() + b"\n")
    return state / name
