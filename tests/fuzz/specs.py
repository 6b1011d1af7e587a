"""Hostile metadata: every model that is accepted can be computed, and whatever else there is ends in one line of ours.

``python -m tests.fuzz.specs --cases 100000``. Changes entries of small models' metadata, and what their headers say of
tensors; what is accepted runs a token, alone and as one of three ranks, in a child process, which must not crash.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tests.parity.rig import pass_of
from tests.unit.runtime.rigs import Alike
from tests.variants.all import SMALL
from tests.variants.made import write_made
from tpi.errors import TpiError
from tpi.gguf.reader import Gguf, read_gguf
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import blocks_of, check_spec, inputs_of, read_spec
from tpi.model.partition import divide
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import lay_out

N_CELLS = 256
Change = tuple[str, str, Any]
"""(metadata or tensor, name, value): of a tensor [type, columns, rows], or None: it is not there."""


@dataclass
class Outcome:
    """What became of the cases."""

    counts: Counter[str]
    crashes: list[tuple[str, list[Change]]]


def mutations(gguf: Gguf, chooser: random.Random) -> list[Change]:
    """One to three changes of a model's header."""
    keys = [key for key in gguf.metadata if not key.startswith(("general.", "tokenizer."))]
    changes: list[Change] = []
    for _ in range(chooser.randint(1, 3)):
        if chooser.random() < 0.75:
            key = chooser.choice(keys)
            changes.append(("metadata", key, _value(gguf.metadata[key], chooser)))
        else:
            tensor = gguf.tensors[chooser.choice(list(gguf.tensors))]
            kind = chooser.choice([tensor.type.name, "F32", "F16", "Q4_0", "Q4_K"])
            columns, rows = (_integer(value, chooser) for value in (tensor.n_columns, tensor.n_rows))
            shape = chooser.choice([(tensor.n_columns, rows), (columns, tensor.n_rows), (tensor.n_rows, columns)])
            elements = TYPES_BY_NAME[kind].block_elements
            n_bytes = TYPES_BY_NAME[kind].row_bytes(-(-shape[0] // elements) * elements) * shape[1]
            if chooser.random() < 0.1:
                changes.append(("tensor", tensor.name, None))
            elif n_bytes <= tensor.n_bytes:  # more is not in the file, which ``read_gguf`` sees
                changes.append(("tensor", tensor.name, [kind, *shape]))
    return changes


def _value(value: Any, chooser: random.Random) -> Any:
    others = ["", "yarn", "linear", "none", None, True, False, -1, 0, 1, 2.5, float("nan"), float("inf"), [1, 2], []]
    if chooser.random() < 0.3:
        return chooser.choice(others)
    if isinstance(value, float):
        return chooser.choice([0.0, -value, value * 1e30, value * 1e-30, value * 2, 1e-45, -0.0])
    return _integer(value, chooser) if isinstance(value, int) else chooser.choice(others)


def _integer(value: int, chooser: random.Random) -> int:
    factor = chooser.choice([1, 2, 3, 4, 8, 1 << 20])
    return chooser.choice([value * factor, value // factor, value + 1, value - 1, chooser.randint(0, 9), 1 << 31, 32])


def apply(gguf: Gguf, changes: Sequence[Change]) -> Gguf:
    """The model with a changed header."""
    metadata, tensors = dict(gguf.metadata), dict(gguf.tensors)
    for what, name, value in changes:
        if what == "metadata":
            metadata.pop(name, None)
            if value is not None:
                metadata[name] = tuple(value) if isinstance(value, list) else value
        elif value is None:
            tensors.pop(name, None)
        elif name in tensors:
            kind, columns, rows = value
            tensors[name] = replace(tensors[name], type=TYPES_BY_NAME[kind], n_columns=columns, n_rows=rows)
    return replace(gguf, metadata=metadata, tensors=tensors)


def try_case(gguf: Gguf, changes: Sequence[Change]) -> str:
    """``refused``, or ``accepted``; raises what must not be raised."""
    try:
        spec = read_spec(apply(gguf, changes), "fuzz")
        check_spec(spec, Path("the plan"))
    except TpiError as error:
        assert "\n" not in str(error)
        return "refused"
    return "accepted"


def run_token(gguf: Gguf, changes: Sequence[Change]) -> str:
    """Runs a token of an accepted model, whose tensors are as they were but for what the header says of them."""
    changed = apply(gguf, changes)
    spec = read_spec(changed, "fuzz")
    blocks = blocks_of(spec)
    for weights, rank in (((1.0,), 0), ((2.0, 1.0, 1.0), 2)):
        partition = divide(blocks, weights)
        model = RankModel(spec, blocks, partition, rank, lay_out(blocks, partition, rank), inputs_of(spec))
        try:
            with EmbeddingTable(changed, spec) as table, Workspace(model, RankSettings(4, N_CELLS, 1)) as workspace:
                Rank(workspace, MemoryWindow(changed, model.pieces), Alike()).run(pass_of(table, 0, 0, [1]))
        except TpiError as error:
            return f"error: {type(error).__name__}"
    return "computed"


class Child:
    """A process that runs tokens; made anew when it has crashed. A context manager."""

    def __init__(self, paths: dict[str, Path]) -> None:
        self._paths = {name: str(path) for name, path in paths.items()}
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def run(self, variant: str, changes: Sequence[Change]) -> str | None:
        """What came of it; None: the process crashed."""
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-m", "tests.fuzz.specs", "--child", json.dumps(self._paths)]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps([variant, changes]) + "\n")
        stdin.flush()
        answer = stdout.readline().strip()
        if not answer:
            self._process.wait()
        return answer or None


def fuzz(n_cases: int, seed: int = 0, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Blocks for some milliseconds a case."""
    chooser, outcome = random.Random(seed), Outcome(Counter(), [])
    with tempfile.TemporaryDirectory() as folder:
        paths = {
            name: write_made(Path(folder) / f"{number}.gguf", make())
            for number, (name, make) in enumerate(SMALL.items())
        }
        models = {name: read_gguf(path) for name, path in paths.items()}
        with Child(paths) as child:
            for number in range(n_cases):
                variant = chooser.choice(list(models))
                changes = mutations(models[variant], chooser)
                found = try_case(models[variant], changes)
                outcome.counts[found] += 1
                if found == "accepted":
                    ran = child.run(variant, changes)
                    outcome.counts[ran or "crashed"] += 1
                    if ran is None or ran.startswith("defect"):
                        outcome.crashes.append((variant, changes))
                        tell(f"{variant}: {changes}: {ran or 'crashed'}")
                if number % 1000 == 999:
                    tell(f"{number + 1} cases: {dict(outcome.counts)}")
    return outcome


def serve(paths: dict[str, str], lines: IO[str]) -> Iterator[str]:
    """The child's side: an answer for each case."""
    models = {name: read_gguf(Path(path)) for name, path in paths.items()}
    for line in lines:
        variant, changes = json.loads(line)
        try:
            yield run_token(models[variant], [tuple(change) for change in changes])
        except Exception as error:
            yield f"defect: {type(error).__name__}: {error}".replace("\n", " ")


def main() -> None:
    """Says what became of the cases; fails if anything crashed."""
    parser = argparse.ArgumentParser(prog="tests.fuzz.specs")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        for answer in serve(json.loads(given.child), sys.stdin):
            print(answer, flush=True)
        return
    outcome = fuzz(given.cases, given.seed, lambda line: print(line, flush=True))
    print(f"{given.cases} cases: {dict(outcome.counts)}")
    if outcome.crashes:
        raise SystemExit(f"{len(outcome.crashes)} crashed")


if __name__ == "__main__":
    main()
