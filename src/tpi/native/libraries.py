"""Finds and loads the shared libraries that llama-cpp-python installs; checks that they are the pinned version.

Declares no functions beyond the version check: each binding stands beside its user. The ``llama_cpp`` Python package
itself is never imported (it costs some 30 MB). Any thread may call this; loading happens once per process. ggml's log
is silenced: what matters in it, errors say.
"""

import ctypes
import functools
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpi.errors import KernelError

GGML_VERSION = "0.25.3"
"""The ggml whose C structs and enums the bindings describe (shipped by the pinned llama-cpp-python)."""

LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
"""``ggml_log_callback``: level, text, user data; libllama's is the same."""

_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_PREFIX = "" if sys.platform == "win32" else "lib"


@dataclass(frozen=True)
class GgmlLibraries:
    """The loaded kernels: ``base`` has tensors, graphs and GGUF files, ``cpu`` computes."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL


def library_path(name: str) -> Path:
    """Path of the shared library ``name`` (``ggml-base``, ``ggml-cpu``, ``ggml``, ``llama``).

    Raises:
        KernelError: llama-cpp-python is not installed, or was installed without this library.
    """
    package = importlib.util.find_spec("llama_cpp")
    if package is None or package.origin is None:
        raise KernelError("the compute kernels are not installed: run `make` or `pip install llama-cpp-python`")
    path = Path(package.origin).parent / "lib" / f"{_PREFIX}{name}{_SUFFIX}"
    if not path.exists():
        raise KernelError(f"the kernel library {path.name} is missing from llama-cpp-python: install it again")
    return path


def _load(name: str) -> ctypes.CDLL:
    path = library_path(name)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"the kernel library {path.name} cannot be loaded: {error}") from error


@functools.cache
def load_ggml() -> GgmlLibraries:
    """Loads the ggml kernels once.

    Raises:
        KernelError: missing, not loadable, or of another version than :data:`GGML_VERSION`.
    """
    base = _load("ggml-base")
    try:
        version = base.ggml_version
    except AttributeError:
        raise KernelError(
            f"the installed ggml is too old to tell its version, this program needs {GGML_VERSION}: "
            "install the pinned llama-cpp-python"
        ) from None
    version.restype, version.argtypes = ctypes.c_char_p, []
    found = version().decode()
    if found != GGML_VERSION:
        raise KernelError(
            f"ggml {found} is installed, this program needs {GGML_VERSION}: install the pinned llama-cpp-python"
        )
    base.ggml_log_set.restype, base.ggml_log_set.argtypes = None, [LogCallback, ctypes.c_void_p]
    base.ggml_log_set(silent_log(), None)
    return GgmlLibraries(base=base, cpu=_load("ggml-cpu"))


@functools.cache
def silent_log() -> Any:
    """A log function that does nothing and needs no Python.

    The libraries may log from any thread, even while the interpreter ends, when a Python function must not be called.
    C's ``abs`` takes fewer arguments than a log function, which the usual calling conventions allow, and has no effect.
    """
    libc = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    return ctypes.cast(libc.abs, LogCallback)


@functools.cache
def load_llama() -> ctypes.CDLL:
    """Loads libllama (tokenizers; master only) once, after the ggml kernels.

    Raises:
        KernelError: as :func:`load_ggml`.
    """
    load_ggml()
    return _load("llama")
