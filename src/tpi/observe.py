"""What the kernel says about memory: this process's or another's, and how much is left on the device.

Linux's /proc and cgroups first; elsewhere psutil, which is imported only there. Keeps no state. Any thread.
"""

import os
import re
import sys
from pathlib import Path

_ROOT = Path("/")
_RESET_PEAK = "5"
_FIELD = re.compile(r"^(\w+):\s*(\d+) kB$", re.MULTILINE)


def resident_bytes(pid: int | None = None) -> int:
    """Memory that process ``pid`` (default: this one) occupies now; 0 if there is no such process."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int | None = None) -> int:
    """The most memory that process ``pid`` (default: this one) has occupied since its start or :func:`reset_peak`.

    The kernel's VmHWM; where there is none, the peak that the system counts since the start. 0 without such a process.
    """
    return _status_bytes(pid, "VmHWM")


def anonymous_bytes() -> int:
    """Memory of this process now that the system cannot drop and read again: without pages of files. 0 where the system
    does not tell."""
    return _status_bytes(None, "RssAnon") if sys.platform == "linux" else 0


def reset_peak() -> bool:
    """Starts the measurement of this process's peak anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Memory that can still be taken without swapping: the device's, or less where a cgroup (v1, v2) limits it.

    Page cache that can be given up counts as available. ``root`` is where proc and sys are found.
    """
    available = _device_available(root)
    for limit, used, reclaimable in _cgroups(root):
        available = min(available, max(0, limit - used + reclaimable))
    return available


def _status_bytes(pid: int | None, field: str) -> int:
    try:
        text = Path(f"/proc/{pid or 'self'}/status").read_text()
    except OSError:
        return 0 if sys.platform == "linux" else _portable_bytes(pid, field)
    return _fields(text).get(field, 0)


def _portable_bytes(pid: int | None, field: str) -> int:
    import psutil  # noqa: PLC0415 - workers on Linux do without it (memory)

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.NoSuchProcess:
        return 0
    if field == "VmRSS":
        return int(memory.rss)
    peak = int(getattr(memory, "peak_wset", memory.rss))
    if pid in (None, os.getpid()) and sys.platform != "win32":
        import resource  # noqa: PLC0415 - Windows has none

        unit = 1 if sys.platform == "darwin" else 1024
        peak = max(peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return peak


def _fields(text: str) -> dict[str, int]:
    """The ``Name: 123 kB`` lines of a file of /proc, in bytes."""
    return {name: int(value) * 1024 for name, value in _FIELD.findall(text)}


def _device_available(root: Path) -> int:
    try:
        return _fields((root / "proc/meminfo").read_text())["MemAvailable"]
    except (OSError, KeyError):
        import psutil  # noqa: PLC0415 - workers on Linux do without it (memory)

        return int(psutil.virtual_memory().available)


def _cgroups(root: Path) -> list[tuple[int, int, int]]:
    """(limit, used, reclaimable) in bytes of this process's cgroup and the ones around it that have a limit."""
    found = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base = root / "sys/fs/cgroup"
            names = "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            base = root / "sys/fs/cgroup/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        # Inside a container the path may be the host's and not exist here; the folders above it still do.
        folder = base / path.lstrip("/")
        for level in (folder, *folder.parents):
            if level == base or base in level.parents:
                found += _read_cgroup(level, *names)
    return found


def _read_cgroup(folder: Path, limit: str, used: str, reclaimable: str) -> list[tuple[int, int, int]]:
    try:
        texts = [(folder / name).read_text() for name in (limit, used, "memory.stat")]
    except OSError:
        return []
    if not texts[0].strip().isdigit():
        return []
    stat = re.search(rf"^{reclaimable} (\d+)$", texts[2], re.MULTILINE)
    return [(int(texts[0]), int(texts[1]), int(stat[1]) if stat else 0)]
