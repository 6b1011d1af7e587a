"""llama.cpp's own server, built from the source package of the kernels that are measured, with their flags and without
its web page: once, into the user's cache. And a running one."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from tools.kernels import PACKAGE, Recipe, SetupError, find_recipe, hold_lock
from tools.setup import ROOT

_START_S = 120.0
_OFF = (
    "BUILD_SHARED_LIBS", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_APP", "LLAMA_BUILD_UI",
    "LLAMA_USE_PREBUILT_UI", "LLAMA_OPENSSL",
)  # fmt: skip


def obtain_server(cache: Path, say: Callable[[str], None]) -> Path:
    """The program, built if it is not there; blocks for ten minutes then. Needs cmake.

    Raises:
        SetupError: it cannot be built.
    """
    recipe = find_recipe((ROOT / "pyproject.toml").read_text(), os.environ)
    folder = cache / "bench" / "llama-server"
    program = folder / recipe.key
    folder.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder / "lock", lambda: say("Another bench is compiling llama.cpp's server: waiting for it.")):
        if not program.exists():
            say("Compiling llama.cpp's server: some ten minutes on two cores, only once.")
            with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as work:
                _build(recipe, Path(work)).rename(program)
    return program


def _build(recipe: Recipe, work: Path) -> Path:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise SetupError("no cmake to build llama.cpp's server with: install it, as with 'sudo apt install cmake'")
    log = work.with_suffix(".log")
    flags = " ".join(recipe.flags)
    options = [f"-D{name}=OFF" for name in _OFF]
    options += ["-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}"]
    fetch = ["download", "-q", "--no-deps", "--no-binary", PACKAGE, "-d", str(work), f"{PACKAGE}=={recipe.version}"]
    with log.open("wb") as output:

        def run(*command: str) -> None:
            environment = {**os.environ, "CC": recipe.c_compiler, "CXX": recipe.cxx_compiler}
            result = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
            if result.returncode:
                raise SetupError(f"llama.cpp's server cannot be built ({' '.join(command[:3])}); the log: {log}")

        run(sys.executable, "-m", "pip", *fetch)
        [package] = work.glob("*.tar.gz")
        with tarfile.open(package) as archive:
            archive.extractall(work, filter="data")
        [source] = work.glob("*/vendor/llama.cpp")
        run(cmake, "-S", str(source), "-B", str(work / "build"), *options)
        run(cmake, "--build", str(work / "build"), "--target", "llama-server", "-j", str(os.cpu_count() or 1))
    return work / "build" / "bin" / "llama-server"


class LlamaServer:
    """One that runs, with ``n_slots`` of ``n_cells`` each. A context manager.

    Raises:
        SetupError: it does not start.
    """

    def __init__(self, program: Path, model: Path, n_threads: int, n_slots: int, n_cells: int) -> None:
        self.port = _free_port()
        # fmt: off
        arguments: Sequence[str] = (
            "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port), "--parallel", str(n_slots),
            "--ctx-size", str(n_slots * n_cells), "--threads", str(n_threads), "--threads-batch", str(n_threads),
            "--flash-attn", "on", "--no-webui",
        )
        # fmt: on
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen([str(program), *arguments], stdin=silent, stdout=silent, stderr=silent)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.2)
        raise SetupError(f"llama.cpp's server did not start (exit status {self._process.poll()})")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port
