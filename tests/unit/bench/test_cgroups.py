"""Limits through cgroups of both versions, on a tree of files that looks like them."""

import os
from pathlib import Path

import pytest

from bench.testbed.cgroups import DeviceGroup, Hierarchy, Limits, disk_of, find_hierarchy
from tpi.errors import UsageError

ALL = Limits(cpu=0.4, memory_bytes=200_000_000, disk_bytes_per_s=5e8, disk=(254, 0))


def make_v2(root: Path) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/mounts").write_text("cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n")
    (root / "proc/self/cgroup").write_text("0::/user.slice/session.scope\n")
    groups = root / "sys/fs/cgroup"
    groups.mkdir(parents=True)
    (groups / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (groups / "cgroup.subtree_control").write_text("cpu\n")
    return groups


def make_v1(root: Path) -> Path:
    (root / "proc/self").mkdir(parents=True)
    groups = root / "sys/fs/cgroup"
    lines, own = [], []
    for name in ("cpu,cpuacct", "memory", "blkio"):
        (groups / name / "own").mkdir(parents=True)
        lines.append(f"cgroup /sys/fs/cgroup/{name} cgroup rw,relatime,{name} 0 0")
        own.append(f"3:{name}:/own")
    (root / "proc/mounts").write_text("\n".join(lines) + "\n")
    (root / "proc/self/cgroup").write_text("\n".join(own) + "\n")
    return groups


def test_version_2_has_one_group_for_all(tmp_path: Path) -> None:
    groups = make_v2(tmp_path)
    group = DeviceGroup("0", ALL, tmp_path)
    folder = groups / f"tpi-bench-{os.getpid()}-0"
    assert group.procs == [folder / "cgroup.procs"]
    assert {file.name: file.read_text() for file in folder.iterdir()} == {
        "cpu.max": "4000 10000",
        "memory.max": "200000000",
        "memory.swap.max": "0",
        "io.max": "254:0 rbps=500000000",
    }


def test_version_1_has_a_group_per_controller_below_the_own_one(tmp_path: Path) -> None:
    groups = make_v1(tmp_path)
    group = DeviceGroup("1", ALL, tmp_path)
    name = f"tpi-bench-{os.getpid()}-1"
    folders = [groups / controller / "own" / name for controller in ("cpu,cpuacct", "memory", "blkio")]
    assert group.procs == [folder / "cgroup.procs" for folder in folders]
    assert (folders[0] / "cpu.cfs_quota_us").read_text() == "4000"
    assert (folders[0] / "cpu.cfs_period_us").read_text() == "10000"
    assert (folders[1] / "memory.limit_in_bytes").read_text() == "200000000"
    assert (folders[2] / "blkio.throttle.read_bps_device").read_text() == "254:0 500000000"


def test_a_device_without_limits_has_only_the_group_to_find_it_by(tmp_path: Path) -> None:
    groups = make_v2(tmp_path)
    DeviceGroup("0", Limits(), tmp_path)
    assert [file.name for file in (groups / f"tpi-bench-{os.getpid()}-0").iterdir()] == ["cpu.max"]


def test_missing_controllers_and_disks_are_said(tmp_path: Path) -> None:
    groups = make_v2(tmp_path)
    (groups / "cgroup.controllers").write_text("memory\n")
    with pytest.raises(UsageError, match="controller cpu"):
        DeviceGroup("0", ALL, tmp_path)
    assert find_hierarchy("memory", tmp_path) == Hierarchy(2, groups)
    with pytest.raises(UsageError, match="block device"):
        DeviceGroup("0", Limits(disk_bytes_per_s=1e6), tmp_path)


def test_disk_of_a_file_system_in_memory() -> None:
    assert disk_of(Path("/proc")) is None
