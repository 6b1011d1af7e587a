"""How the bench starts its own modules and the package's in other processes. No threads, no state."""

import os
from pathlib import Path

import tpi

PYTHON_PATH = os.pathsep.join((str(Path(__file__).resolve().parents[1]), str(Path(tpi.__file__).parents[1])))
"""Where this checkout's ``bench`` and the package that is measured are found."""


def module_variables() -> dict[str, str]:
    """The environment in which ``python -m`` finds both."""
    return {**os.environ, "PYTHONPATH": PYTHON_PATH}


def last_words(errors: str) -> str:
    """The last line that a failed process wrote."""
    return (errors.strip().splitlines() or ["none"])[-1]
