"""Compiles the testbed's C programs at first use and keeps them in the user's cache. No threads, no state."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tpi.cli.environment import find_folders
from tpi.errors import UsageError

_FLAGS = ("-std=gnu11", "-O2", "-Wall")


def find_program(name: str) -> Path:
    """``NAME.c``, compiled; blocks for a second or so the first time.

    Raises:
        UsageError: there is no C compiler, or it fails.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UsageError("emulating devices needs a C compiler: install gcc or clang")
    source = Path(__file__).with_name(f"{name}.c")
    key = hashlib.sha256(source.read_bytes() + repr((compiler, _FLAGS, os.uname().machine)).encode()).hexdigest()
    path = find_folders().cache / "bench" / f"{name}-{key[:16]}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = Path(folder) / name
            result = subprocess.run(
                [compiler, *_FLAGS, "-o", str(made), str(source)], capture_output=True, text=True, check=False
            )
            if result.returncode:
                first = (result.stderr.strip().splitlines() or ["no message"])[0]
                raise UsageError(f"{compiler} cannot compile {source.name}: {first}")
            made.replace(path)
    return path
