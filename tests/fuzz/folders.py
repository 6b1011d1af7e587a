"""Hostile folders of model hubs: configs and headers with changes, read as far as rows are made of them.

    python -m tests.fuzz.folders [--cases 20000] [--seed 0]

Whatever they say, they are read, or refused with an error of ours in one line.
"""

import argparse
import copy
import json
import math
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.hubfolders import write_folder, write_raw
from tests.parity.hubtwins import RESULT
from tpi.errors import TpiError
from tpi.hub.reader import read_model
from tpi.model.architectures import read_spec
from tpi.weights.modelfiles import ModelFiles

_VALUES: tuple[Any, ...] = (
    None, 0, 1, -1, 2, 3, 7, 1 << 31, 1 << 40, 1.5, float("nan"), float("inf"), 10**400, "x", "", [], [1], {},
    {"a": 1}, True, False, [None], "sliding_attention", ["full_attention"],
)  # fmt: skip
_TYPES = ("BF16", "F16", "U8", "F8_E4M3", "F8_E5M2", "F32", "I8", "F99")
_MOST_BYTES = 1 << 24


@dataclass
class Outcome:
    """How many were read and refused, and what went wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)


def fuzz(n_cases: int, seed: int = 0) -> Outcome:
    """Tries so many folders, always the same for a seed."""
    twins, outcome, chance = json.loads(RESULT.read_text()), Outcome(), random.Random(seed)
    with tempfile.TemporaryDirectory() as place:
        folders = {
            name: write_folder(Path(place) / name, twin["config"], twin["sources"]) for name, twin in twins.items()
        }
        for number in range(n_cases):
            name = chance.choice(list(twins))
            config, file = copy.deepcopy(twins[name]["config"]), folders[name] / "model.safetensors"
            data = file.read_bytes()
            n_bytes = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + n_bytes])
            if chance.random() < 0.7:
                _change(config, chance)
            if chance.random() < 0.5:
                _change_tensor(header, chance)
            (folders[name] / "config.json").write_text(json.dumps(config))
            write_raw(file, json.dumps(header).encode(), data[8 + n_bytes :])
            _read(folders[name], f"case {number} of {name}", outcome)
            file.write_bytes(data)
    return outcome


def _read(folder: Path, case: str, outcome: Outcome) -> None:
    try:
        gguf = read_model(folder)
        read_spec(gguf, "")
        with ModelFiles(gguf) as files:
            for tensor in gguf.tensors.values():
                if tensor.recipe is not None and tensor.n_bytes < _MOST_BYTES:
                    files.read_rows(tensor, 0, memoryview(bytearray(tensor.n_bytes)))
        outcome.counts["read"] += 1
    except TpiError as error:
        outcome.counts["refused"] += 1
        if "\n" in str(error) or len(str(error)) > 1000:
            outcome.crashes.append(f"{case}: no line: {str(error)[:200]!r}")
    except Exception as error:
        outcome.crashes.append(f"{case}: {error!r:.200}")


def _change(found: Any, chance: random.Random) -> None:
    """Changes one value, somewhere within."""
    keys: list[Any] = list(found) if isinstance(found, dict) else list(range(len(found)))
    if not keys:
        return
    key = chance.choice(keys)
    value = found[key]
    if isinstance(value, dict | list) and value and chance.random() < 0.7:
        _change(value, chance)
    elif isinstance(found, dict) and chance.random() < 0.15:
        del found[key]
    elif isinstance(value, int) and not isinstance(value, bool) and chance.random() < 0.5:
        found[key] = chance.choice([value * 2, value + 1, value - 1, value // 2, -value])
    else:
        found[key] = chance.choice(_VALUES)


def _change_tensor(header: dict[str, Any], chance: random.Random) -> None:
    """Another type, or a shape of as many values; or anything."""
    entry = header[chance.choice(list(header))]
    shape, n_values = entry["shape"], math.prod(entry["shape"])
    kind = chance.random()
    if kind < 0.4:
        rows = chance.choice([rows for rows in (1, 2, 3, 8, 32) if n_values % rows == 0])
        entry["shape"] = chance.choice([[rows, n_values // rows], [n_values], [n_values, 1], shape[::-1], [1, *shape]])
    elif kind < 0.7:
        entry["dtype"] = chance.choice(_TYPES)
    else:
        _change(header, chance)


def main() -> None:
    """Tells how it went."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcome = fuzz(arguments.cases, arguments.seed)
    print(dict(outcome.counts), *outcome.crashes[:20], sep="\n")
    if outcome.crashes:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
