"""Processes that the system gives no more memory from some moment on. Linux only."""

import subprocess
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

ROOT = Path(__file__).parents[1]


def give_no_more_than(n_bytes: int) -> None:
    """Limits this process's address space to what it has now and ``n_bytes`` more."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = n_pages * resource.getpagesize() + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def said_by(code: str, *arguments: str) -> list[str]:
    """The lines that a process which runs ``code`` prints; it must not fail."""
    command = [sys.executable, "-c", code, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()
