"""Emulated devices: real namespaces where this user may make them, and what is said where not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.testbed import testbed
from bench.testbed.cgroups import find_hierarchy
from bench.testbed.check import check
from bench.testbed.testbed import Device, Testbed, can_emulate
from tpi.errors import UsageError

real = pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))


def test_without_root_the_other_way_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match=r"needs root.*--local-devices"):
        Testbed([Device()])


def test_settings_of_the_switch() -> None:
    devices = [Device(), Device(rate_bps=100e6)]
    assert testbed._switch_settings(devices, 0.001, 300e6, {(1, 0): 0.005}, 100e6, 0.002) == (
        "2 cubic,reno\n12500000.0 2000000\n"
        "10.99.0.1 37500000.0\n10.99.0.2 12500000.0\n1000000 1000000\n5000000 1000000\n"
    )


@real
def test_links_have_their_latency_and_rate() -> None:
    with Testbed([Device(), Device()], latency_s=0.004, rate_bps=50e6) as bed:
        report = json.loads(check(bed).json())
    assert 4.0 <= report["half_round_trip_p50_ms"] <= 4.6  # other work on this machine may wake programs late
    assert 40 <= report["rate_mbps"] <= 50


@real
def test_devices_of_one_medium_share_its_rate() -> None:
    with Testbed([Device()] * 3, latency_s=0.005, medium_bps=100e6, jitter_s=0.002) as bed:
        report = json.loads(check(bed).json())
    assert 4.0 <= report["half_round_trip_p50_ms"] <= 6.5
    assert report["half_round_trip_p90_ms"] > report["half_round_trip_p50_ms"] + 0.3
    assert 75 <= report["rate_mbps"] <= 100
    assert 20 <= report["duplex_rate_mbps"] <= 50  # each way: half of the medium, less acknowledgements


@real
def test_devices_see_nothing_but_their_network() -> None:
    with Testbed([Device(), Device()]) as bed:
        code = "import psutil; print(sorted(psutil.net_if_addrs()), psutil.net_if_addrs()['tpi0'][0].address)"
        process = bed.popen(1, [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.communicate()[0].split() == ["['lo',", "'tpi0']", bed.address(1)]


@real
def test_traffic_is_counted() -> None:
    code = (
        "import socket; a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.sendto(bytes(1000), ('10.99.0.2', 9))"
    )
    with Testbed([Device(), Device()]) as bed:
        bed.popen(0, [sys.executable, "-c", code]).wait()
        sent = bed.statistics().devices[0]
        assert (sent.sent_packets, sent.sent_bytes) == (1, 1028)
        bed.reset_statistics()
        assert bed.statistics().devices[0].sent_bytes == 0


@real
def test_nothing_is_left_even_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), Testbed([Device(cpu=0.5), Device()]) as bed:
        code = "import subprocess; subprocess.Popen(['sleep', '60']); print(1, flush=True); import time; time.sleep(60)"
        process = bed.popen(0, [sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        inside = bed._groups[0].procs[0].read_text().split()
        assert len(inside) == 2
        raise ZeroDivisionError
    assert not any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in inside)
    assert not list(find_hierarchy("cpu").parent.glob(f"tpi-bench-{os.getpid()}-*"))
    assert bed._switch.poll() == 0


def _state(pid: str) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@real
def test_a_memory_limit_ends_who_exceeds_it() -> None:
    with Testbed([Device(memory_bytes=50_000_000)]) as bed:
        process = bed.popen(0, [sys.executable, "-c", "x = b'1' * 100_000_000"], stderr=subprocess.DEVNULL)
        assert process.wait(20) == -9
