"""The addresses under which other devices can reach this one. Sends nothing to anybody."""

import ipaddress
import socket

import psutil

from tpi.cluster.pairing.joinkey import MAX_ADDRESSES, Address


def own_addresses(bind: str, port: int) -> list[Address]:
    """Where a socket bound to ``bind`` and ``port`` can be called: that address, or all of this device's.

    For ``0.0.0.0`` the addresses of interfaces that are up, those of home networks first, loopback last.
    """
    if bind not in ("0.0.0.0", "::"):
        return [Address(bind, port)]
    families = (socket.AF_INET,) if bind == "0.0.0.0" else (socket.AF_INET, socket.AF_INET6)
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        ipaddress.ip_address(entry.address.split("%")[0])
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if entry.family in families
    ]
    usable = [address for address in found if not address.is_link_local]
    usable.sort(key=lambda address: (address.is_loopback, address.version, not address.is_private))
    return [Address(str(address), port) for address in usable[:MAX_ADDRESSES]] or [Address("127.0.0.1", port)]
