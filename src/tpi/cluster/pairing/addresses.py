"""Where this device can be called, and the socket that listens there. Sends nothing to anybody."""

import errno
import ipaddress
import os
import socket
from typing import Any

from tpi.cluster.pairing.joinkey import MAX_ADDRESSES, Address
from tpi.errors import LinkError

BACKLOG = 128


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` (``0.0.0.0`` or ``::``: everywhere) and ``port`` (0: any free one).

    The caller owns it. Raises LinkError.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise LinkError(_explain(error, host, port)) from None
    except OverflowError:
        sock.close()
        raise LinkError(f"cannot listen on port {port}: ports go from 1 to 65535") from None
    return sock


def describe_peer(address: Any) -> str:
    """A peer's address as ``accept`` gives it, as text."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: end what uses it (another `tpi serve`?) or choose another port"
    if error.errno == errno.EACCES:
        return f"port {port} on {host} needs administrator rights: choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is not an address of this device: choose one of its own, or 0.0.0.0 for all"
    return f"cannot listen on {host}, port {port}: {error.strerror}"


def own_addresses(bind: str, port: int) -> list[Address]:
    """Where a socket bound to ``bind`` and ``port`` can be called: that address, or all of this device's.

    For ``0.0.0.0`` the addresses of interfaces that are up, those of home networks first, loopback last.
    """
    if bind not in ("0.0.0.0", "::"):
        return [Address(bind, port)]
    import psutil  # noqa: PLC0415 - workers do without it (memory)

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
