"""What a KV cache of fewer bits loses, on held-out conversations of the demo model: ``python -m tests.parity.kvloss``.

llama.cpp turns keys and values by a Hadamard matrix before it quantises them; this program does not. Shows the loss of
both, in nats a token of what the assistant says, and how far each is from its own cache in 16 bits.
"""

import argparse
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from demo import talk
from demo.tokenizer import SAVED, Tokenizer
from tests.parity.rig import cluster_logits, reference_logits
from tpi.cli.models import find_model
from tpi.cluster.allreduce.driver import Sums
from tpi.gguf.types import F16, TYPES_BY_NAME, TensorType
from tpi.runtime.protocols import Float32Array

_CONTEXT, Q8_0, Q4_0 = 512, TYPES_BY_NAME["Q8_0"], TYPES_BY_NAME["Q4_0"]


def conversations(count: int) -> list[tuple[list[int], list[bool]]]:
    """Tokens, and which of them are the assistant's."""
    chooser, tokenizer = random.Random(talk.HELD_OUT_SEED), Tokenizer.load(SAVED)
    found = (tokenizer.conversation(talk.conversation(chooser)) for _ in range(count))
    return [(numbers[:_CONTEXT], own[:_CONTEXT]) for numbers, own in found]


def losses(logits: Float32Array, tokens: list[int], own: list[bool]) -> Float32Array:
    """Nats of each token that is the assistant's, but the first."""
    rows = logits[:-1].astype(np.float64)
    highest = rows.max(axis=1, keepdims=True)
    normed = rows - highest - np.log(np.exp(rows - highest).sum(axis=1, keepdims=True))
    nats = -normed[np.arange(len(rows)), tokens[1:]]
    found: Float32Array = nats[np.array(own[1:])].astype(np.float32)
    return found


def ours(path: Path, tokens: list[int], kind: TensorType) -> Float32Array:
    return cluster_logits(path, [tokens], [Sums(None, None)], context=_CONTEXT, kv_type=kind)[0]


def theirs(path: Path, tokens: list[int], kind: TensorType, is_turned: bool) -> Float32Array:
    os.environ["LLAMA_ATTN_ROT_DISABLE"] = "0" if is_turned else "1"
    return reference_logits(path, [tokens], context=_CONTEXT, kv_type=kind)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="tests.parity.kvloss")
    parser.add_argument("--conversations", type=int, default=40)
    given = parser.parse_args()
    path = find_model("demo")
    ways: dict[str, Callable[[list[int]], Float32Array]] = {
        "tpi, F16": lambda tokens: ours(path, tokens, F16),
        "tpi, Q8_0": lambda tokens: ours(path, tokens, Q8_0),
        "tpi, Q4_0": lambda tokens: ours(path, tokens, Q4_0),
        "llama.cpp, F16": lambda tokens: theirs(path, tokens, F16, True),
        "llama.cpp, Q8_0": lambda tokens: theirs(path, tokens, Q8_0, False),
        "llama.cpp, Q8_0, turned": lambda tokens: theirs(path, tokens, Q8_0, True),
        "llama.cpp, Q4_0": lambda tokens: theirs(path, tokens, Q4_0, False),
        "llama.cpp, Q4_0, turned": lambda tokens: theirs(path, tokens, Q4_0, True),
    }
    held_out = conversations(given.conversations)
    print("| cache | nats a token | mean difference from its F16 | largest |\n| --- | --- | --- | --- |")
    exact: dict[str, Float32Array] = {}
    for name, run in ways.items():
        found = np.concatenate([losses(run(tokens), tokens, own) for tokens, own in held_out])
        base = exact.setdefault(name.split(",")[0], found)
        apart = np.abs(found - base)
        print(f"| {name} | {found.mean():.5f} | {apart.mean():.1e} | {apart.max():.1e} |", flush=True)


if __name__ == "__main__":
    main()
