"""Devices with a network of their own each, on one bridge: what cannot reach what is decided here. Linux, as root.

Nobody asks for anybody's hardware address: all are known from the start, and where a wrong one stands, packets are
lost without a word.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Self

_NOBODY = "02:00:00:00:00:fe"
"""No port has this hardware address."""
_LOST = "10.98.0.254"
_TABLE = "100"


def why_not() -> str | None:
    """Why such networks cannot be made here; None: they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux, and root"
    if shutil.which("ip") is None:
        return "network namespaces need the command `ip`"
    name = f"tpi-try-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if tried.returncode:
        return "network namespaces cannot be made here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


def _ip(*words: str, inside: str | None = None) -> None:
    place = ["-netns", inside] if inside else []
    done = subprocess.run(["ip", *place, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Network:
    """``n`` devices that all reach each other, until something is taken away. A context manager."""

    def __init__(self, n: int) -> None:
        self._n, self._mark = n, f"tpi-{os.getpid()}"
        self._names: list[str] = []
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything; idempotent."""
        while self._names:
            _ip("netns", "delete", self._names.pop())

    def address(self, device: int) -> str:
        """Devices are numbered from 0."""
        return f"10.98.0.{device + 1}"

    def on(self, device: int) -> Sequence[str]:
        """The command that runs another one on the device."""
        return ["ip", "netns", "exec", self._name(device)]

    def drop(self, one: int, other: int) -> None:
        """Whatever either sends to the other is lost, and nobody is told."""
        for device, far in ((one, other), (other, one)):
            _ip(*self._neighbour(self.address(far), _NOBODY), inside=self._name(device))

    def refuse(self, one: int, other: int) -> None:
        """Calls of either to the other are refused at once: nobody listens at what it takes for the other's address."""
        for device, far in ((one, other), (other, one)):
            _ip("address", "add", f"{self.address(far)}/32", "dev", "lo", inside=self._name(device))

    def drop_calls(self, caller: int, called: int, port: int) -> None:
        """Calls of one to a port of the other are lost; calls the other way, and their answers, are not."""
        inside = self._name(caller)
        _ip("route", "add", f"{self.address(called)}/32", "via", _LOST, "dev", "port", "table", _TABLE, inside=inside)
        which = ["to", self.address(called), "ipproto", "tcp", "dport", str(port)]
        _ip("rule", "add", *which, "lookup", _TABLE, "priority", "10", inside=inside)

    def _make(self) -> None:
        switch = self._add(f"{self._mark}-switch")
        _ip("link", "add", "bridge", "type", "bridge", inside=switch)
        _ip("link", "set", "bridge", "up", inside=switch)
        for device in range(self._n):
            inside, end = self._add(self._name(device)), f"to-{device}"
            _ip("link", "add", end, "type", "veth", "peer", "name", "port", "netns", inside, inside=switch)
            _ip("link", "set", end, "master", "bridge", "up", inside=switch)
            _ip("link", "set", "port", "address", self._hardware(device), "up", inside=inside)
            _ip("link", "set", "lo", "up", inside=inside)
            _ip("address", "add", f"{self.address(device)}/24", "dev", "port", inside=inside)
            _ip(*self._neighbour(_LOST, _NOBODY), inside=inside)
            for other in range(self._n):
                if other != device:
                    _ip(*self._neighbour(self.address(other), self._hardware(other)), inside=inside)

    def _add(self, name: str) -> str:
        _ip("netns", "add", name)
        self._names.append(name)
        return name

    def _name(self, device: int) -> str:
        return f"{self._mark}-{device}"

    @staticmethod
    def _neighbour(address: str, hardware: str) -> list[str]:
        return ["neighbour", "replace", address, "lladdr", hardware, "dev", "port", "nud", "permanent"]

    @staticmethod
    def _hardware(device: int) -> str:
        return f"02:00:00:00:00:{device + 1:02x}"
