"""Sets a checkout up: an environment in .venv with the kernels, the package and its dependencies.

Run as ``python3 -m tools.setup`` from the checkout's root; the Makefile does so. Called again with nothing
changed, it finds its stamp and returns at once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tools.kernels import Recipe, SetupError, find_recipe, forget_wheel, hold_lock, obtain_wheel, pip_builder

MINIMUM_PYTHON = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
C_SOURCES = "src/tpi/native/csrc"
PIP = "pip>=25.1"  # the first that knows dependency groups


@dataclass(frozen=True)
class Stamp:
    """What an environment was made from; written when everything is installed."""

    kernels: str
    project: str
    dev: bool

    @property
    def text(self) -> str:
        return f"{self.kernels} {self.project} {'dev' if self.dev else 'run'}\n"

    @classmethod
    def parse(cls, text: str) -> Stamp | None:
        fields = text.split()
        return cls(fields[0], fields[1], fields[2] == "dev") if len(fields) == 3 else None


def covers(present: Stamp | None, wanted: Stamp) -> bool:
    """Whether an environment with the stamp ``present`` needs nothing more to be as ``wanted``."""
    if present is None or (present.kernels, present.project) != (wanted.kernels, wanted.project):
        return False
    return present.dev or not wanted.dev


def say(text: str) -> None:
    """Tells the user, on standard error: standard output belongs to what the caller starts afterwards."""
    print(text, file=sys.stderr, flush=True)


def check_python() -> None:
    """Raises ``SetupError`` if this Python is too old or came without the means to create environments."""
    if sys.version_info < MINIMUM_PYTHON:
        have = ".".join(map(str, sys.version_info[:3]))
        raise SetupError(f"Python {have} is too old: install 3.11 or newer and say 'make run PYTHON=python3.11'")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError("this Python cannot create environments: install it, with 'sudo apt install python3-venv'")


def cache_folder() -> Path:
    """The folder of the user's cache that is this project's."""
    configured = os.environ.get("XDG_CACHE_HOME")
    return (Path(configured) if configured else Path.home() / ".cache") / "tpi"


def run_quietly(command: list[str], doing: str) -> None:
    """Runs a command, showing its output only if it fails; raises ``SetupError`` then."""
    result = subprocess.run(
        command,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise SetupError(f"{doing} failed:\n{result.stdout.rstrip()}\nCommand: {' '.join(command)}")


def ensure_environment(environment: Path) -> None:
    """Makes an environment of this Python, anew if the folder has one of another."""
    current = "{}.{}".format(*sys.version_info[:2])
    interpreter = environment / "bin" / "python"
    if interpreter.exists() and (environment / "lib" / f"python{current}").is_dir():
        return
    say(f"Creating the environment {environment.name}")
    shutil.rmtree(environment, ignore_errors=True)
    run_quietly([sys.executable, "-m", "venv", str(environment)], "creating the environment")


def read_c_sources() -> str:
    """What the package compiles, and how."""
    return "\n".join(file.read_text() for file in (ROOT / "setup.py", *sorted((ROOT / C_SOURCES).iterdir())))


def find_stamp(recipe: Recipe, pyproject: str, dev: bool, c_sources: str = "") -> Stamp:
    """The stamp of an environment that is as ``pyproject``, this Python and this checkout ask for."""
    sources = "\n".join((sys.version, str(ROOT), pyproject, c_sources))
    return Stamp(recipe.key, hashlib.sha256(sources.encode()).hexdigest()[:16], dev)


def set_up(environment: Path, dev: bool, rebuild_kernels: bool) -> None:
    """Brings the environment to the state that pyproject.toml asks for; returns at once if it is in it."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    recipe = find_recipe(pyproject, os.environ)
    wanted = find_stamp(recipe, pyproject, dev, read_c_sources())
    stamp_file = environment / "setup-stamp"
    python = environment / "bin" / "python"
    if rebuild_kernels:
        forget_wheel(recipe, cache_folder())
        stamp_file.unlink(missing_ok=True)
    if python.exists() and covers(read_stamp(stamp_file), wanted):
        return
    with hold_lock(ROOT / "build" / "setup.lock", lambda: say("Another setup is running: waiting for it.")):
        ensure_environment(environment)
        present = read_stamp(stamp_file)
        if covers(present, wanted):
            return
        stamp_file.unlink(missing_ok=True)
        run_quietly([*pip_install(python), "--upgrade", PIP], "upgrading pip")
        wheel = obtain_wheel(recipe, cache_folder(), pip_builder(python, os.environ), say)
        if present is None or present.kernels != wanted.kernels:
            install_kernels(python, wheel)
        wanted = replace(wanted, dev=dev or (present is not None and present.dev))
        install_packages(python, wanted.dev)
        stamp_file.write_text(wanted.text)


def read_stamp(file: Path) -> Stamp | None:
    """What the stamp file says; None if there is none or it is damaged."""
    return Stamp.parse(file.read_text()) if file.is_file() else None


def pip_install(python: Path) -> list[str]:
    """The beginning of a quiet ``pip install`` command for that interpreter's environment."""
    return [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]


def install_kernels(python: Path, wheel: Path) -> None:
    """Installs the kernels, by force: the version does not tell two compiles apart."""
    command = [*pip_install(python), "--force-reinstall", "--no-deps", str(wheel)]
    run_quietly(command, "installing the kernels")


def install_packages(python: Path, dev: bool) -> None:
    """Installs the package, editable, and what it needs; ``dev`` adds what tests and checks need."""
    say("Installing the Python packages")
    group = ["--group", "dev"] if dev else []
    run_quietly([*pip_install(python), "-e", ".", *group], "installing the packages")


def main() -> int:
    """Reads the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.setup", description="Sets this checkout up in .venv.")
    parser.add_argument("--dev", action="store_true", help="also install what the tests and checks need")
    parser.add_argument("--rebuild-kernels", action="store_true", help="compile the kernels again")
    arguments = parser.parse_args()
    try:
        check_python()
        set_up(ROOT / ".venv", arguments.dev, arguments.rebuild_kernels)
    except SetupError as error:
        say(f"setup: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
