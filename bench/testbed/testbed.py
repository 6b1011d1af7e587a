"""The emulated devices: starts the switch, makes limits, starts processes inside, and removes it all at the end.

The thread that makes a testbed starts its processes, and must live as long as they shall: they end with it. The switch
is a process of its own; namespaces live in it and vanish with it, even if this process is killed.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec

from bench.testbed.cgroups import DeviceGroup, Limits, disk_of, remove_stale
from bench.testbed.helper import find_program
from tpi.errors import UsageError

MAX_DEVICES = 16
_NETWORK = "10.99.0"
_CONGESTION_CONTROL = "cubic,reno"
"""What ordinary devices use; where the host reserves the first for itself, the second, which is the same as long as
nothing is lost."""

_GRACE_S = 5.0


@dataclass(frozen=True)
class Device:
    """What an emulated device has: ``cpu`` cores, memory for its processes and their page cache, bytes per second read
    from the disk, bits per second through its port. None: no limit, or the testbed's rate."""

    cpu: float | None = None
    memory_bytes: int | None = None
    disk_bytes_per_s: float | None = None
    rate_bps: float | None = None


class PortTraffic(msgspec.Struct, frozen=True):
    """What went through a device's port: bytes of IP packets as on the wire, and packets as the kernel made them."""

    sent_bytes: int
    received_bytes: int
    sent_packets: int
    received_packets: int


class SwitchStatistics(msgspec.Struct, frozen=True):
    """The ports' traffic, and how much later than emulated packets were handed over."""

    late_p50_s: float
    late_p99_s: float
    late_max_s: float
    devices: tuple[PortTraffic, ...]


def can_emulate() -> str | None:
    """None if devices can be emulated here, otherwise why not and what to do instead."""
    if sys.platform != "linux":
        return "devices can be emulated on Linux only; `tpi run MODEL --local-devices 4` works over loopback"
    if os.geteuid() != 0:
        return "emulating devices needs root; `tpi run MODEL --local-devices 4` works over loopback without it"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "emulating devices needs /dev/net/tun; `tpi run MODEL --local-devices 4` works over loopback"
    return None


def require_emulation() -> None:
    """Raises UsageError where devices cannot be emulated."""
    reason = can_emulate()
    if reason is not None:
        raise UsageError(reason)


class Testbed:
    """``devices`` behind a switch. A context manager; ``close`` is idempotent.

    Args:
        latency_s: one way, between any two; ``latencies_s`` has other ones for pairs (from, to).
        rate_bps: of every port and direction, counting IP packets; a device may have its own.
        medium_bps: all devices share one medium of this rate, of which one sends at a time, and have no ports.
        jitter_s: every packet is up to so much earlier or later.
        disk: where the files lie whose reads ``disk_bytes_per_s`` limits.

    The processors' shares should leave a fifth of the machine's cores free: the switch and the kernel need some.

    Raises:
        UsageError: this machine cannot do it; says what it can do.
    """

    __test__ = False  # no test case, whatever its name begins with

    def __init__(
        self,
        devices: Sequence[Device],
        latency_s: float = 0.001,
        rate_bps: float = 300e6,
        *,
        latencies_s: Mapping[tuple[int, int], float] | None = None,
        medium_bps: float = 0.0,
        jitter_s: float = 0.0,
        disk: Path | None = None,
    ) -> None:
        require_emulation()
        if not 1 <= len(devices) <= MAX_DEVICES:
            raise UsageError(f"{len(devices)} devices: 1 to {MAX_DEVICES} can be emulated")
        self.devices = tuple(devices)
        self._processes: list[subprocess.Popen[Any]] = []
        self._stack = ExitStack()
        self._is_closed = False
        try:
            self._program = find_program("switch")
            remove_stale()
            place = disk_of(disk or Path.cwd())
            self._groups = [
                self._stack.enter_context(contextlib.closing(DeviceGroup(str(rank), _limits(device, place))))
                for rank, device in enumerate(devices)
            ]
            settings = _switch_settings(devices, latency_s, rate_bps, latencies_s or {}, medium_bps, jitter_s)
            self._start_switch(settings)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes, asking first, then whatever is left inside; removes limits and namespaces."""
        if self._is_closed:
            return
        self._is_closed = True
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._stack.close()

    def address(self, rank: int) -> str:
        """The device's IPv4 address; only the devices can reach it."""
        assert 0 <= rank < len(self.devices)
        return _address(rank)

    def popen(
        self, rank: int, argv: Sequence[str], *, is_limited: bool = True, **options: Any
    ) -> subprocess.Popen[Any]:
        """Starts a process on the device, within its limits or only in its network; ``options`` are those of
        ``subprocess.Popen``. It ends with the testbed."""
        limits = map(str, self._groups[rank].procs) if is_limited else ()
        enter = [str(self._program), "enter", self._namespaces[rank], *limits, "--"]
        process = subprocess.Popen([*enter, *argv], **options)
        self._processes.append(process)
        return process

    def statistics(self) -> SwitchStatistics:
        """Since the start or :meth:`reset_statistics`."""
        return msgspec.json.decode(self._command("s"), type=SwitchStatistics)

    def throttled_s(self) -> tuple[float, ...]:
        """How long each device's processes were ready to run and not let, since the start."""
        return tuple(group.throttled_s() for group in self._groups)

    def reset_statistics(self) -> None:
        self._command("r", has_answer=False)

    def _start_switch(self, settings: str) -> None:
        self._switch = subprocess.Popen(
            [str(self._program), "run"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # an interrupt from the keyboard must not end it before the devices
        )
        self._stack.callback(_end_switch, self._switch)
        self._command(settings, has_answer=False)
        word, *rest = self._read_line().split()
        assert word == "ready"
        self.is_realtime = rest[0] == "1"
        self.congestion_control = rest[1]
        self._namespaces = [f"/proc/{self._switch.pid}/fd/{descriptor}" for descriptor in rest[2:]]

    def _command(self, text: str, has_answer: bool = True) -> str:
        assert self._switch.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._switch.stdin.write(text)
            self._switch.stdin.flush()
        return self._read_line() if has_answer else ""

    def _read_line(self) -> str:
        assert self._switch.stdout is not None and self._switch.stderr is not None
        line = self._switch.stdout.readline()
        if not line:
            self._switch.wait()
            raise UsageError(f"devices cannot be emulated here: {self._switch.stderr.read().strip()}")
        return line


def _limits(device: Device, disk: tuple[int, int] | None) -> Limits:
    return Limits(device.cpu, device.memory_bytes, device.disk_bytes_per_s, disk)


def _address(rank: int) -> str:
    return f"{_NETWORK}.{rank + 1}"


def _switch_settings(
    devices: Sequence[Device],
    latency_s: float,
    rate_bps: float,
    latencies_s: Mapping[tuple[int, int], float],
    medium_bps: float,
    jitter_s: float,
) -> str:
    """What ``switch.c`` reads."""
    ranks = range(len(devices))
    lines = [f"{len(devices)} {_CONGESTION_CONTROL}", f"{medium_bps / 8} {round(jitter_s * 1e9)}"]
    lines += [f"{_address(rank)} {(devices[rank].rate_bps or rate_bps) / 8}" for rank in ranks]
    lines += [" ".join(str(round(latencies_s.get((a, b), latency_s) * 1e9)) for b in ranks) for a in ranks]
    return "\n".join(lines) + "\n"


def _end_switch(switch: subprocess.Popen[str]) -> None:
    for stream in (switch.stdin, switch.stdout, switch.stderr):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    try:
        switch.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        switch.kill()
        switch.wait()
