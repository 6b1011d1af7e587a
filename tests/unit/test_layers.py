"""The package's shape: imports point downwards, no cycles, settings are read at the edge, workers stay small.

The rules are functions over a source tree, so that they are tried on a tree that breaks them, too.
"""

import ast
import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tpi

PACKAGE_FOLDER = Path(tpi.__file__).parent

LAYERS = ("native", "gguf", "hub", "model", "weights", "runtime", "planner", "cluster", "engine", "api", "cli")
BASE = ("errors", "config", "observe", "trace", "version")
HEIGHTS = dict.fromkeys(BASE, 0) | {layer: height for height, layer in enumerate(LAYERS, start=1)}
HEIGHTS["__main__"] = HEIGHTS["cli"]
HEIGHTS["testing"] = HEIGHTS["cluster"]

MASTER_ONLY = ("rich", "jinja2", "typer", "fastapi", "starlette", "pydantic", "uvicorn", "llama_cpp", "huggingface_hub")
WORKER = "tpi.cluster.worker"
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")


@dataclass(frozen=True)
class Import:
    """One module imported by another; ``runs`` says whether merely loading the importer loads it."""

    name: str
    line: int
    runs: bool


@dataclass(frozen=True)
class Module:
    """One file of the package, parsed."""

    name: str
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def layer(self) -> str:
        return layer_of(self.name)


def layer_of(name: str) -> str:
    """The layer that a module of ours belongs to; empty for the package itself."""
    return name.split(".")[1] if "." in name else ""


def read_modules(folder: Path) -> dict[str, Module]:
    """Every module below ``folder`` (the package's own), by its full name."""
    trees = {}
    for file in sorted(folder.rglob("*.py")):
        parts = [folder.name, *file.relative_to(folder).with_suffix("").parts]
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(file.read_text(), filename=str(file))
    return {name: Module(name, tree, tuple(_find_imports(tree, set(trees)))) for name, tree in trees.items()}


def _find_imports(tree: ast.Module, known: set[str]) -> list[Import]:
    found: list[Import] = []

    def visit(node: ast.AST, runs: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, runs) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
            module = node.module or ""
            names = (f"{module}.{alias.name}" for alias in node.names)
            found.extend(Import(name if name in known else module, node.lineno, runs) for name in names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for checked in node.body:
                visit(checked, False)
            for otherwise in node.orelse:
                visit(otherwise, runs)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                visit(child, runs and not inside)

    visit(tree, True)
    return found


def find_upward_imports(modules: dict[str, Module]) -> list[str]:
    """Imports of a higher layer, or of ``testing`` by anything else; a layer without a place is one, too."""
    faults = []
    for module in modules.values():
        if module.layer and module.layer not in HEIGHTS:
            faults.append(f"{module.name}: the layer '{module.layer}' has no place in the order")
            continue
        for target in module.imports:
            layer = layer_of(target.name)
            if target.name.split(".")[0] != "tpi" or layer in ("", module.layer):
                continue
            upward = HEIGHTS.get(layer, len(HEIGHTS)) > HEIGHTS.get(module.layer, -1)
            if upward or layer == "testing":
                faults.append(f"{module.name}:{target.line} imports {target.name}")
    return faults


def find_cycle(modules: dict[str, Module]) -> list[str]:
    """The modules of one import cycle, those inside functions and for type checkers, too; or none."""
    graph = {name: {i.name for i in module.imports if i.name in modules} for name, module in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def find_settings_read_below(modules: dict[str, Module]) -> list[str]:
    """Places outside the command line that read environment variables or the command's arguments."""
    forbidden = {"os.environ", "os.environb", "os.getenv", "os.putenv", "sys.argv", "sys.orig_argv"}
    faults = []
    for module in modules.values():
        if module.layer in ("cli", "__main__"):
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute):
                names = {ast.unparse(node)}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
            else:
                continue
            faults += [f"{module.name}:{node.lineno} reads {name}" for name in sorted(names & forbidden)]
    return faults


def find_options_named_below(modules: dict[str, Module]) -> list[str]:
    """Sentences outside the command line that name one of its options: whoever reads them may have called an API."""
    faults = []
    for module in modules.values():
        if module.layer in ("cli", "__main__"):
            continue
        prose = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                faults += [f"{module.name}:{node.lineno} names {name}" for name in _OPTION.findall(node.value)]
    return faults


def find_loaded(modules: dict[str, Module], start: str) -> set[str]:
    """Names of all modules, ours and others, that loading ``start`` loads, through modules of ours."""
    loaded: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        if name in loaded:
            continue
        loaded.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:n]) for n in range(1, len(parts))]  # a module loads its packages first
        if name in modules:
            waiting += [target.name for target in modules[name].imports if target.runs]
    return loaded


@pytest.fixture(scope="module")
def modules() -> dict[str, Module]:
    return read_modules(PACKAGE_FOLDER)


def test_imports_point_downwards(modules: dict[str, Module]) -> None:
    assert find_upward_imports(modules) == []


def test_no_import_cycle(modules: dict[str, Module]) -> None:
    assert find_cycle(modules) == []


def test_settings_are_read_in_cli_only(modules: dict[str, Module]) -> None:
    assert find_settings_read_below(modules) == []


def test_options_are_named_in_cli_only(modules: dict[str, Module]) -> None:
    assert find_options_named_below(modules) == []


def test_every_module_says_what_it_owns(modules: dict[str, Module]) -> None:
    assert [name for name, module in modules.items() if not ast.get_docstring(module.tree)] == []


def test_a_worker_loads_nothing_of_the_master(modules: dict[str, Module]) -> None:
    workers = [name for name in modules if name == WORKER or name.startswith(f"{WORKER}.")]
    loaded = {name.split(".")[0] for worker in workers for name in find_loaded(modules, worker)}
    assert loaded.isdisjoint(MASTER_ONLY), loaded.intersection(MASTER_ONLY)


def write_tree(folder: Path, sources: dict[str, str]) -> dict[str, Module]:
    """A package ``tpi`` of the given files in ``folder``, read."""
    for name, source in sources.items():
        file = folder / "tpi" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return read_modules(folder / "tpi")


def test_upward_imports_are_found(tmp_path: Path) -> None:
    sources = {
        "errors.py": "",
        "gguf/reader.py": "import struct\nfrom tpi.errors import TpiError\nfrom tpi.gguf import types\n",
        "gguf/types.py": "def f():\n    from tpi.model.spec import ModelSpec\n",
        "model/spec.py": "from tpi import testing\n",
        "testing/fake.py": "import tpi.cluster.wire\nimport tpi.engine.run\n",
        "extra/new.py": "",
    }
    assert find_upward_imports(write_tree(tmp_path, {**sources, "testing/__init__.py": ""})) == [
        "tpi.extra.new: the layer 'extra' has no place in the order",
        "tpi.gguf.types:2 imports tpi.model.spec",
        "tpi.model.spec:1 imports tpi.testing",
        "tpi.testing.fake:2 imports tpi.engine.run",
    ]


def test_cycles_are_found(tmp_path: Path) -> None:
    sources = {"gguf/a.py": "from tpi.gguf.b import x\n", "gguf/b.py": "def f():\n    import tpi.gguf.a\n"}
    assert set(find_cycle(write_tree(tmp_path, sources))) == {"tpi.gguf.a", "tpi.gguf.b"}


def test_settings_read_below_are_found(tmp_path: Path) -> None:
    sources = {
        "cli/main.py": "import os, sys\nprint(os.environ, sys.argv)\n",
        "model/a.py": "import os\nx = os.environ['A']\n",
        "model/b.py": "from sys import argv\n",
        "model/c.py": "import os, sys\nprint(os.getpid(), sys.platform)\n",
    }
    faults = find_settings_read_below(write_tree(tmp_path, sources))
    assert faults == ["tpi.model.a:2 reads os.environ", "tpi.model.b:1 reads sys.argv"]


def test_options_named_below_are_found(tmp_path: Path) -> None:
    sources = {
        "cli/main.py": "print('start with --context')\n",
        "model/a.py": '"""Of --layout."""\nx = 1\nprint(f"--layout {x}: wrong")\n',
        "model/b.py": "print('a -- b', 'a--b', '---')\n",
    }
    assert find_options_named_below(write_tree(tmp_path, sources)) == ["tpi.model.a:3 names --layout"]


def test_what_a_module_loads(tmp_path: Path) -> None:
    sources = {
        "__init__.py": "",
        "cluster/__init__.py": "import zlib\n",
        "cluster/worker.py": "from tpi.cluster import link\nif TYPE_CHECKING:\n    import rich\n",
        "cluster/link.py": "import ssl\ndef f():\n    import jinja2\nif 1:\n    import typer.core\n",
        "cluster/other.py": "import uvicorn\n",
    }
    loaded = find_loaded(write_tree(tmp_path, sources), "tpi.cluster.worker")
    others = {name for name in loaded if not name.startswith("tpi")}
    assert others == {"zlib", "ssl", "typer", "typer.core"}
