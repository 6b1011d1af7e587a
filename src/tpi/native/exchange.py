"""The C helper for exchanges between devices (``csrc``): finding it, its functions' types, and the TLS that it
uses.

It drives Python's own TLS connections: OpenSSL's functions are those that Python's ``ssl`` has loaded, and a
connection's C object is found inside Python's. That this holds for this Python is tried once in a child process,
because a wrong pointer raises no errors but kills the process. Where anything is missing, there is no helper, and
Python does the same.
"""

import ctypes
import functools
import importlib.machinery
import importlib.util
import json
import ssl
import subprocess
import sys
from contextlib import suppress
from ctypes import POINTER, c_float, c_int, c_int32, c_int64, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

_MODULE = "tpi.native._exchange"
_PROBE_TIMEOUT_S = 20.0
_SSL_OFFSETS = (24, 16, 32)
"""Where in Python's object the pointer to OpenSSL's may be, in bytes."""

TIMED_OUT, STOPPED = 1, 2
CLOSED, BROKEN, TOO_LARGE, OUT_OF_STEP, TOO_MANY, NO_FRAME = 1, 2, 3, 4, 5, 6


class TlsFunctions(ctypes.Structure):
    """``tls_functions``."""

    _fields_ = tuple((name, c_void_p) for name in ("read", "write", "get_error", "pending", "clear_error"))


class Conversions(ctypes.Structure):
    """``conversions``: ggml's."""

    _fields_ = tuple((name, c_void_p) for name in ("to_f16", "from_f16", "to_int8", "from_int8"))


_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "exchange_new": (c_void_p, [POINTER(TlsFunctions), c_int, POINTER(c_int32), POINTER(c_void_p), c_int]),
    "exchange_free": (None, [c_void_p]),
    "exchange_stop": (None, [c_void_p]),
    "exchange_send": (c_int, [c_void_p, c_void_p, c_int, c_void_p, c_void_p]),
    "exchange_expect": (c_int, [c_void_p, c_void_p, c_int, c_void_p, c_void_p, ctypes.c_char_p, c_int, c_void_p]),
    "exchange_arm": (None, [c_void_p]),
    "exchange_sleep": (c_int, [c_void_p, c_int]),
    "exchange_move": (c_int, [c_void_p]),
    "exchange_wait": (c_int, [c_void_p, c_void_p, c_int]),
    "exchange_is_waited_for": (c_int, [c_void_p, c_int, c_void_p]),
    "exchange_error": (c_int, [c_void_p, c_int, POINTER(c_uint8), POINTER(c_uint8), POINTER(c_int32)]),
    "exchange_counts": (None, [c_void_p, POINTER(c_uint64), POINTER(c_uint64)]),
    "payload_is_within": (c_int, [c_void_p, c_int64, c_float]),
    "payload_put": (None, [c_void_p, c_void_p, ctypes.c_char_p, c_int, c_void_p, c_int64]),
    "payload_get": (None, [c_void_p, c_void_p, c_void_p, c_int64]),
    "sum_start": (
        c_int,
        [c_void_p, c_uint64, c_uint32, c_int, c_float, c_void_p, c_void_p, c_int64],
    ),
    "sum_finish": (c_int, [c_void_p, c_int]),
    "exchange_log": (None, [c_void_p, c_void_p, c_int64]),
    "exchange_logged": (c_int64, [c_void_p, POINTER(c_int64)]),
    "program_run": (c_int, [c_void_p, c_uint64]),
    "payload_add": (c_int, [c_void_p, c_void_p, c_int, c_int, c_void_p, c_int64]),
}


class Helper:
    """The loaded library. ``tls`` are OpenSSL's functions, ``offset`` where a connection's C object is found."""

    def __init__(self, library: ctypes.CDLL, openssl: ctypes.CDLL, offset: int) -> None:
        self.library = library
        self._offset = offset
        self._openssl = openssl
        names = "SSL_read", "SSL_write", "SSL_get_error", "SSL_pending", "ERR_clear_error"
        addresses = [ctypes.cast(getattr(openssl, name), c_void_p).value for name in names]
        self.tls = TlsFunctions(*addresses)
        for name, (restype, argtypes) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes

    def pointer_of(self, sock: ssl.SSLSocket) -> int | None:
        """OpenSSL's object of an open connection; None if it is not found. Valid as long as ``sock`` is open."""
        return _pointer_of(self._openssl, sock, self._offset)


@functools.cache
def load_helper(cache: Path | None = None) -> Helper | None:
    """The helper, once per process; None where it cannot be had. ``cache`` is the folder where it is noted whether this
    Python's connections can be used."""
    path = _library_path()
    openssl = _openssl()
    if path is None or openssl is None:
        return None
    offset = _noted_offset(cache)
    if offset is None:
        return None
    with suppress(OSError, AttributeError):
        return Helper(ctypes.CDLL(str(path)), openssl, offset)
    return None


def _library_path() -> Path | None:
    """Where the compiled helper is, beside this file or wherever the package was built."""
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(_MODULE)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin)
    return None


def _openssl() -> ctypes.CDLL | None:
    """The OpenSSL that Python's ``ssl`` uses, and no other."""
    with suppress(OSError, AttributeError, ImportError):
        spec = importlib.util.find_spec("_ssl")
        if spec is None or spec.origin is None or isinstance(spec.loader, importlib.machinery.BuiltinImporter):
            return None
        library = ctypes.CDLL(spec.origin)
        library.SSL_get_fd.argtypes, library.SSL_get_fd.restype = [c_void_p], c_int
        library.SSL_version.argtypes, library.SSL_version.restype = [c_void_p], c_int
        return library
    return None


def _pointer_of(openssl: ctypes.CDLL, sock: ssl.SSLSocket, offset: int) -> int | None:
    inner = getattr(sock, "_sslobj", None)
    if inner is None:
        return None
    pointer = c_void_p.from_address(id(inner) + offset).value
    return pointer if pointer and openssl.SSL_get_fd(pointer) == sock.fileno() else None


def _noted_offset(cache: Path | None) -> int | None:
    """Where the pointer is, as a child process has found."""
    key = f"{sys.version} {ssl.OPENSSL_VERSION} {sys.executable}"
    note = cache / "exchange.json" if cache is not None else None
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if note is not None:
            known = json.loads(note.read_text())
            if known["python"] == key:
                found = known["offset"]
                return int(found) if found is not None else None
    offset = _find_offset()
    if note is not None:
        with suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps({"python": key, "offset": offset}))
    return offset


def _find_offset() -> int | None:
    """Each place is tried in a child of its own: a wrong one may kill it."""
    for offset in _SSL_OFFSETS:
        command = [sys.executable, "-P", "-m", "tpi.native.exchange"]
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run(
                command, input=str(offset).encode(), capture_output=True, timeout=_PROBE_TIMEOUT_S, check=False
            )
            if done.returncode == 0:
                return offset
    return None


def main() -> int:
    """Whether OpenSSL's objects are found at the offset that standard input says: 0 if they are."""
    import socket  # noqa: PLC0415 - the child only

    openssl, offset = _openssl(), int(sys.stdin.read())
    if openssl is None:
        return 1
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    for _ in range(3):
        ends = socket.socketpair()
        with context.wrap_socket(ends[0], do_handshake_on_connect=False) as sock, ends[1]:
            if _pointer_of(openssl, sock, offset) is None:
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
