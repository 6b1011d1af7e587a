"""Limits of processor, memory and disk for a device's processes, through cgroups v1 or v2, whichever has a controller.

Owns the folders that it makes; what a killed run left is removed by the next one. The names carry the maker's process
id. No threads.
"""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import UsageError

PERIOD_US = 10_000
"""The processor's quota is given out anew so often: short, so that a device is slow rather than asleep."""

_PREFIX = "tpi-bench-"
_EMPTY_S = 5.0
_CONTROLLERS = ("cpu", "memory", "blkio")
_V2_NAMES = {"cpu": "cpu", "memory": "memory", "blkio": "io"}


@dataclass(frozen=True)
class Limits:
    """``cpu`` in cores; reads from ``disk`` (major, minor) in bytes per second. None: no limit."""

    cpu: float | None = None
    memory_bytes: int | None = None
    disk_bytes_per_s: float | None = None
    disk: tuple[int, int] | None = None


@dataclass(frozen=True)
class Hierarchy:
    """Where groups with a controller can be made."""

    version: int
    parent: Path


class DeviceGroup:
    """One device's groups. ``procs`` are the files to enter by. ``close`` ends whoever is inside; idempotent.

    Raises:
        UsageError: this system has no cgroups that can do what is asked.
    """

    def __init__(self, name: str, limits: Limits, root: Path = Path("/")) -> None:
        self._folders: list[Path] = []
        try:
            for controller, settings in _settings(limits).items():
                if settings is not None:
                    self._make(find_hierarchy(controller, root), controller, name, settings)
        except OSError as error:
            self.close()
            raise UsageError(f"cannot limit an emulated device: {error.filename}: {error.strerror}") from error
        except UsageError:
            self.close()
            raise

    @property
    def procs(self) -> Sequence[Path]:
        return [folder / "cgroup.procs" for folder in self._folders]

    def throttled_s(self) -> float:
        """How long its processes were held back because they had used up the processor's quota."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                words = dict(line.split() for line in (folder / "cpu.stat").read_text().splitlines())
                if "throttled_usec" in words:
                    return int(words["throttled_usec"]) / 1e6
                if "throttled_time" in words:
                    return int(words["throttled_time"]) / 1e9
        return 0.0

    def close(self) -> None:
        deadline = time.monotonic() + _EMPTY_S
        while self._folders:
            folder = self._folders[-1]
            try:
                _kill_all(folder)
                folder.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
                continue
            self._folders.pop()

    def _make(self, hierarchy: Hierarchy, controller: str, name: str, settings: dict[int, dict[str, str]]) -> None:
        folder = hierarchy.parent / f"{_PREFIX}{os.getpid()}-{name}"
        if hierarchy.version == 2:
            _enable(hierarchy.parent, _V2_NAMES[controller])
        if folder not in self._folders:
            folder.mkdir()
            self._folders.append(folder)
        for file, value in settings[hierarchy.version].items():
            (folder / file).write_text(value)


def _settings(limits: Limits) -> dict[str, dict[int, dict[str, str]] | None]:
    """By controller and version, what to write into which file. There is always a group of ``cpu``, to find the
    device's processes by."""
    quota = "max" if limits.cpu is None else str(max(1000, round(limits.cpu * PERIOD_US)))
    result: dict[str, dict[int, dict[str, str]] | None] = dict.fromkeys(_CONTROLLERS)
    result["cpu"] = {
        1: {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": "-1" if quota == "max" else quota},
        2: {"cpu.max": f"{quota} {PERIOD_US}"},
    }
    if limits.memory_bytes is not None:
        size = str(limits.memory_bytes)
        result["memory"] = {
            1: {"memory.limit_in_bytes": size, "memory.swappiness": "0"},
            2: {"memory.max": size, "memory.swap.max": "0"},
        }
    if limits.disk_bytes_per_s is not None:
        if limits.disk is None:
            raise UsageError("the disk's reads cannot be limited: this file system lies on no block device of its own")
        device, rate = "{}:{}".format(*limits.disk), int(limits.disk_bytes_per_s)
        result["blkio"] = {
            1: {"blkio.throttle.read_bps_device": f"{device} {rate}"},
            2: {"io.max": f"{device} rbps={rate}"},
        }
    return result


def find_hierarchy(controller: str, root: Path = Path("/")) -> Hierarchy:
    """Where to make groups: with v1 below the own group, whose limits so stay in force; with v2 at the top, because a
    group with processes may not have groups with limits.

    Raises:
        UsageError: no mounted hierarchy has the controller.
    """
    for line in (root / "proc/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        folder = root / place.lstrip("/")
        if kind == "cgroup" and controller in options.split(","):
            own = folder / _own_group(controller, root).lstrip("/")
            return Hierarchy(1, own if own.is_dir() else folder)
        if kind == "cgroup2":
            available = (folder / "cgroup.controllers").read_text().split()
            if _V2_NAMES[controller] in available:
                return Hierarchy(2, folder)
    raise UsageError(f"emulated devices need cgroups with the controller {controller}, which this system has not")


def _own_group(controller: str, root: Path) -> str:
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path
    return "/"


def _enable(parent: Path, name: str) -> None:
    control = parent / "cgroup.subtree_control"
    if name not in control.read_text().split():
        control.write_text(f"+{name}")


def _kill_all(folder: Path) -> None:
    for line in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(line), signal.SIGKILL)


def remove_stale(root: Path = Path("/")) -> None:
    """Removes the empty groups of runs that were killed."""
    for controller in _CONTROLLERS:
        try:
            parent = find_hierarchy(controller, root).parent
        except UsageError:
            continue
        for folder in parent.glob(f"{_PREFIX}*"):
            maker = folder.name.removeprefix(_PREFIX).split("-")[0]
            if maker.isdecimal() and not Path(f"/proc/{maker}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def disk_of(path: Path) -> tuple[int, int] | None:
    """The whole disk (major, minor) that ``path`` lies on; None for file systems without one, such as tmpfs."""
    number = path.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if not entry.exists():
        return None
    entry = entry.resolve()
    if (entry / "partition").exists():
        entry = entry.parent
    major, minor = (entry / "dev").read_text().split(":")
    return int(major), int(minor)
