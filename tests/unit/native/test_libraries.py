"""Finding and loading the kernels' libraries: what is missing or of another version is one line."""

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from tpi.errors import KernelError
from tpi.native import libraries


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A llama-cpp-python in a folder of its own, without libraries: its ``lib`` folder."""
    found = importlib.machinery.ModuleSpec("llama_cpp", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    (tmp_path / "lib").mkdir()
    return tmp_path / "lib"


def test_the_installed_kernels_are_the_pinned_version() -> None:
    loaded = libraries.load_ggml()
    assert loaded.base.ggml_version().decode() == libraries.GGML_VERSION
    assert libraries.load_ggml() is loaded
    assert libraries.load_llama() is libraries.load_llama()


def test_kernels_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KernelError, match="not installed: run"):
        libraries.library_path("ggml-base")


def test_a_missing_library_is_named(package: Path) -> None:
    with pytest.raises(KernelError, match=r"ggml-cpu.* is missing"):
        libraries.library_path("ggml-cpu")


def test_a_damaged_library_is_named(package: Path) -> None:
    name = libraries._PREFIX + "ggml-base" + libraries._SUFFIX
    (package / name).write_bytes(b"no library")
    with pytest.raises(KernelError, match=r"ggml-base.* cannot be loaded"):
        libraries.load_ggml.__wrapped__()


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "GGML_VERSION", "0.1.2")
    with pytest.raises(KernelError, match=r"ggml [0-9.]+ is installed, this program needs 0\.1\.2"):
        libraries.load_ggml.__wrapped__()
