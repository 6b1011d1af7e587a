"""The wheel of the compute kernels (ggml and libllama): compiled once for this CPU, kept in the user's cache.

It does not install anything. One caller at a time builds: others wait for its lock and take what it made.

Layout of the cache folder:

    wheels/<key>/*.whl       the wheel; appears complete or not at all
    wheels/<key>/recipe.txt  what the key stands for
    wheels/<key>.log         what the last compile said, also when it failed
    wheels/lock              held while somebody compiles
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PACKAGE = "llama-cpp-python"

# gcc 12 drops AMX's tile configuration before it is loaded: on CPUs with AMX every quantised product of
# several rows then crashes.
NO_AMX = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")

BYTES_PER_COMPILER = 1 << 30
LOG_LINES_SHOWN = 20


class SetupError(Exception):
    """Something is missing or failed; the text says what to do."""


@dataclass(frozen=True)
class Recipe:
    """Everything that the compiled bytes depend on; two recipes of the same key make the same wheel.

    Python's version is not part of it: the wheel holds C libraries that any Python 3 loads.
    """

    version: str
    c_compiler: str
    cxx_compiler: str
    flags: tuple[str, ...]
    target: str
    """The compiler's version and the CPU as it sees it: its predefined macros for ``-march=native``."""

    @property
    def description(self) -> str:
        system = f"{platform.system()} {platform.machine()}"
        return f"{PACKAGE} {self.version}\n{system}\n{self.cmake_args}\n{self.target}"

    @property
    def key(self) -> str:
        return f"{self.version}-{hashlib.sha256(self.description.encode()).hexdigest()[:16]}"

    @property
    def cmake_args(self) -> str:
        options = ["-DLLAVA_BUILD=OFF", "-DMTMD_BUILD=OFF"]
        if self.flags:
            joined = " ".join(self.flags)
            options[:0] = [f'-DCMAKE_C_FLAGS="{joined}"', f'-DCMAKE_CXX_FLAGS="{joined}"']
        return " ".join(options)


class Build(Protocol):
    """How a wheel is made; tests put something faster in its place."""

    def __call__(self, recipe: Recipe, into: Path, log: Path) -> None:
        """Puts the recipe's wheel into the folder ``into`` and writes what it has to say to ``log``."""


def find_recipe(pyproject: str, environment: Mapping[str, str]) -> Recipe:
    """The recipe for this machine; ``pyproject`` is the text of pyproject.toml, which pins the version."""
    pinned = re.search(rf'"{PACKAGE}==([^"]+)"', pyproject)
    if pinned is None:
        raise SetupError(f"pyproject.toml does not pin {PACKAGE}==VERSION")
    cxx_compiler = _find_compiler(environment.get("CXX"), ("c++", "g++", "clang++"))
    c_compiler = _find_compiler(environment.get("CC"), ("cc", "gcc", "clang"))
    flags: tuple[str, ...] = ()
    if platform.machine() in ("x86_64", "AMD64") and _macros(cxx_compiler, NO_AMX) is not None:
        flags = NO_AMX
    for native in ("-march=native", "-mcpu=native"):
        target = _macros(cxx_compiler, (native, *flags))
        if target is not None:
            return Recipe(pinned[1], c_compiler, cxx_compiler, flags, target)
    raise SetupError(f"the compiler {cxx_compiler} cannot compile for this CPU: install g++ 11 or newer, or set CXX")


def _find_compiler(chosen: str | None, names: tuple[str, ...]) -> str:
    for name in (chosen,) if chosen else names:
        if found := shutil.which(name):
            return found
    raise SetupError(f"no C++ compiler ({chosen or ', '.join(names)}): install one, as with 'sudo apt install g++'")


def _macros(compiler: str, options: tuple[str, ...]) -> str | None:
    """The macros that the compiler predefines with these options; None when it does not know one of them."""
    command = [compiler, *options, "-dM", "-E", "-x", "c++", os.devnull]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.stdout if result.returncode == 0 else None


def obtain_wheel(recipe: Recipe, cache: Path, build: Build, say: Callable[[str], None]) -> Path:
    """The wheel's path in the cache folder; compiles it if it is not there, or waits for who does."""
    folder = cache / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    if wheel := _find_wheel(folder / recipe.key):
        return wheel
    with hold_lock(folder / "lock", lambda: say("Another setup is compiling the kernels: waiting for it.")):
        if wheel := _find_wheel(folder / recipe.key):
            return wheel
        for stale in folder.glob(".build-*"):  # of a build that was killed: we hold the lock
            shutil.rmtree(stale, ignore_errors=True)
        return _build_locked(recipe, folder, build, say)


def _find_wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _build_locked(recipe: Recipe, folder: Path, build: Build, say: Callable[[str], None]) -> Path:
    log = folder / f"{recipe.key}.log"
    say(f"Compiling the compute kernels for this CPU: some 5 minutes on two cores, only once. Log: {log}")
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as temporary:
        made = Path(temporary) / "made"
        made.mkdir()
        try:
            build(recipe, made, log)
        except (OSError, subprocess.SubprocessError) as error:
            raise SetupError(_describe_failure(log, str(error))) from error
        if _find_wheel(made) is None:
            raise SetupError(_describe_failure(log, "the compile left no wheel"))
        (made / "recipe.txt").write_text(recipe.description)
        shutil.rmtree(folder / recipe.key, ignore_errors=True)
        made.rename(folder / recipe.key)
    wheel = _find_wheel(folder / recipe.key)
    assert wheel is not None
    return wheel


def _describe_failure(log: Path, reason: str) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    shown = "".join(f"    {line}\n" for line in lines[-LOG_LINES_SHOWN:])
    return f"compiling the kernels failed; the end of its log:\n{shown}{reason}\nThe whole log: {log}"


def pip_builder(python: Path, environment: Mapping[str, str]) -> Build:
    """A ``Build`` that compiles the source package with the pip of ``python``; blocks for minutes.

    pip's own cache of wheels is left out, since it does not look at the flags that a wheel was compiled with.
    """

    def build(recipe: Recipe, into: Path, log: Path) -> None:
        changed = {
            "CC": recipe.c_compiler,
            "CXX": recipe.cxx_compiler,
            "CMAKE_ARGS": recipe.cmake_args,
            "CMAKE_BUILD_PARALLEL_LEVEL": str(_count_compilers()),
            "TMPDIR": str(into.parent),
        }
        options = ["--no-deps", "--no-cache-dir", "--no-binary", PACKAGE, "--wheel-dir", str(into)]
        command = [str(python), "-m", "pip", "wheel", *options, f"{PACKAGE}=={recipe.version}"]
        with log.open("wb") as output:
            subprocess.run(
                command, env={**environment, **changed}, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, check=True,
            )  # fmt: skip

    return build


def _count_compilers() -> int:
    """How many compilers fit this machine at once: one a core, and a GiB of memory for each."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(os.cpu_count() or 1, memory_bytes // BYTES_PER_COMPILER))


def forget_wheel(recipe: Recipe, cache: Path) -> None:
    """Removes the recipe's wheel from the cache folder, so that the next ``obtain_wheel`` compiles it."""
    shutil.rmtree(cache / "wheels" / recipe.key, ignore_errors=True)


@contextmanager
def hold_lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file ``path``; blocks until nobody else does, after calling ``on_wait`` once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
