"""Memory figures: this process's own, and what a device with cgroups of both versions has left."""

import mmap
import os
import sys
from pathlib import Path

import pytest

from tpi import observe

MEMINFO = "MemTotal:       8000000 kB\nMemAvailable:   4000000 kB\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_rises_with_memory_and_can_be_reset() -> None:
    before = observe.resident_bytes()
    assert 5_000_000 < before < 1_000_000_000
    size = 60_000_000
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, size, 4096):
            memory[at] = 1
        assert observe.resident_bytes() >= before + size * 9 // 10
    assert observe.peak_resident_bytes() >= before + size * 9 // 10
    assert observe.peak_resident_bytes(os.getpid()) == observe.peak_resident_bytes()
    if observe.reset_peak():
        assert observe.peak_resident_bytes() < before + size // 2


def test_no_such_process_occupies_nothing() -> None:
    assert observe.resident_bytes(2**22 + 1) == 0


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_available_without_cgroups(tmp_path: Path) -> None:
    assert observe.available_memory_bytes(write(tmp_path, {"proc/meminfo": MEMINFO})) == 4_096_000_000


def test_available_in_nested_cgroups_v2(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/user/tpi"
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "0::/user/tpi\n",
        f"{group}/memory.max": "max\n",
        f"{group}/memory.current": "1\n",
        f"{group}/memory.stat": "inactive_file 1\n",
        "sys/fs/cgroup/user/memory.max": "1000\n",
        "sys/fs/cgroup/user/memory.current": "700\n",
        "sys/fs/cgroup/user/memory.stat": "anon 5\ninactive_file 50\n",
    }
    assert observe.available_memory_bytes(write(tmp_path, files)) == 350


def test_available_in_cgroups_v1_of_a_container(tmp_path: Path) -> None:
    files = {
        "proc/meminfo": MEMINFO,
        "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/0123\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "2100\n",
        "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 30\n",
    }
    assert observe.available_memory_bytes(write(tmp_path, files)) == 0
