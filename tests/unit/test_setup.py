"""The setup scripts: what the cached kernels depend on, and that compiles are whole, single and explained."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tools import kernels, setup
from tools.kernels import Recipe, SetupError, find_recipe, forget_wheel, obtain_wheel, pip_builder

RECIPE = Recipe("1.2", "/usr/bin/cc", "/usr/bin/c++", kernels.NO_AMX, "#define __AVX2__ 1\n")
PYPROJECT = 'dependencies = [\n    "llama-cpp-python==1.2",\n]\n'


class FakeBuild:
    """Writes a small wheel; counts its calls; can be slow or fail."""

    def __init__(self, seconds: float = 0, failure: str = "") -> None:
        self.calls = 0
        self.seconds = seconds
        self.failure = failure

    def __call__(self, recipe: Recipe, into: Path, log: Path) -> None:
        self.calls += 1
        log.write_text("".join(f"line {n}\n" for n in range(100)))
        (into / "half.tmp").write_text("not yet")
        time.sleep(self.seconds)
        if self.failure:
            raise OSError(self.failure)
        (into / "half.tmp").rename(into / f"kernels-{recipe.version}.whl")


def test_a_wheel_is_compiled_once(tmp_path: Path) -> None:
    build, said = FakeBuild(), list[str]()
    first = obtain_wheel(RECIPE, tmp_path, build, said.append)
    second = obtain_wheel(RECIPE, tmp_path, build, said.append)
    assert first == second == tmp_path / "wheels" / RECIPE.key / "kernels-1.2.whl"
    assert first.read_text() == "not yet"
    assert build.calls == 1
    assert len(said) == 1 and f"{RECIPE.key}.log" in said[0]
    assert "__AVX2__" in (first.parent / "recipe.txt").read_text()


def test_concurrent_setups_compile_once(tmp_path: Path) -> None:
    build, said = FakeBuild(seconds=0.3), list[str]()
    threads = [threading.Thread(target=obtain_wheel, args=(RECIPE, tmp_path, build, said.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert build.calls == 1
    assert sum("waiting" in line for line in said) == 2


def test_a_failed_compile_shows_its_end_and_leaves_nothing_but_the_log(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        obtain_wheel(RECIPE, tmp_path, FakeBuild(failure="no space left"), lambda _: None)
    text = str(caught.value)
    assert "line 99" in text and "line 80" in text and "line 79" not in text
    assert "no space left" in text and str(tmp_path / "wheels" / f"{RECIPE.key}.log") in text
    assert sorted(file.name for file in (tmp_path / "wheels").iterdir()) == [f"{RECIPE.key}.log", "lock"]
    assert obtain_wheel(RECIPE, tmp_path, FakeBuild(), lambda _: None).exists()


def test_what_a_killed_compile_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "wheels" / ".build-killed" / "made"
    left.mkdir(parents=True)
    (left / "half.whl").write_text("half")
    obtain_wheel(RECIPE, tmp_path, FakeBuild(), lambda _: None)
    assert not left.exists()


def test_forgotten_kernels_are_compiled_again(tmp_path: Path) -> None:
    build = FakeBuild()
    obtain_wheel(RECIPE, tmp_path, build, lambda _: None)
    forget_wheel(RECIPE, tmp_path)
    obtain_wheel(RECIPE, tmp_path, build, lambda _: None)
    assert build.calls == 2


@pytest.mark.parametrize("change", [{"version": "1.3"}, {"flags": ()}, {"target": "#define __AVX512F__ 1\n"}])
def test_the_key_changes_with_what_the_bytes_depend_on(change: dict[str, object]) -> None:
    assert replace(RECIPE, **change).key != RECIPE.key  # type: ignore[arg-type]


def test_cmake_gets_the_flags_quoted() -> None:
    joined = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    both = f'-DCMAKE_C_FLAGS="{joined}" -DCMAKE_CXX_FLAGS="{joined}"'
    assert RECIPE.cmake_args == f"{both} -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"
    assert replace(RECIPE, flags=()).cmake_args == "-DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"


def test_the_recipe_of_this_machine() -> None:
    recipe = find_recipe(PYPROJECT, os.environ)
    assert recipe.version == "1.2"
    assert "__VERSION__" in recipe.target
    assert recipe == find_recipe(PYPROJECT, os.environ)


def test_a_missing_compiler_is_one_line() -> None:
    with pytest.raises(SetupError, match=r"no-such-compiler.*apt install") as caught:
        find_recipe(PYPROJECT, {"CXX": "no-such-compiler"})
    assert "\n" not in str(caught.value)


def test_a_compiler_that_does_not_know_the_flags_gets_none(tmp_path: Path) -> None:
    compiler = tmp_path / "old-c++"
    compiler.write_text('#!/bin/sh\ncase "$*" in *amx*) exit 1;; esac\necho "#define OLD 1"\n')
    compiler.chmod(0o755)
    recipe = find_recipe(PYPROJECT, {"CXX": str(compiler), "CC": str(compiler)})
    assert recipe.flags == () and recipe.target == "#define OLD 1\n"


def test_the_builder_runs_pip_with_the_flags_and_logs(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$CMAKE_ARGS|$CC|$HOME|$*"\n')
    python.chmod(0o755)
    log = tmp_path / "log"
    pip_builder(python, {"HOME": "/home/me"})(RECIPE, tmp_path / "made", log)
    cmake_args, compiler, home, arguments = log.read_text().strip().split("|")
    assert cmake_args == RECIPE.cmake_args and compiler == "/usr/bin/cc" and home == "/home/me"
    assert arguments.startswith("-m pip wheel ") and "--no-binary" in arguments
    assert arguments.endswith("llama-cpp-python==1.2")


def test_a_failing_builder_is_reported(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho cmake says no\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(SetupError, match="cmake says no"):
        obtain_wheel(RECIPE, tmp_path, pip_builder(python, os.environ), lambda _: None)


def test_a_stamp_covers_what_it_was_made_for() -> None:
    dev = setup.Stamp("kernels", "project", dev=True)
    run = setup.Stamp("kernels", "project", dev=False)
    assert setup.Stamp.parse(dev.text) == dev and setup.Stamp.parse(run.text) == run
    assert setup.Stamp.parse("damaged") is None
    assert setup.covers(dev, run) and setup.covers(dev, dev) and setup.covers(run, run)
    assert not setup.covers(run, dev) and not setup.covers(None, run)
    assert not setup.covers(dev, setup.Stamp("others", "project", dev=False))
