"""Holds an exported file against the network it came from: logits on held-out text, greedy answers, near ties.

``python -m tests.trained.verify windowed --checkpoint trained-run/windowed/checkpoint.pt --file FILE``. Needs torch and
llama-cpp-python; prints, and exits 1 when logits are too far off. Of an F32 file none may be; with F16, llama.cpp
rounds what it multiplies, which now and then tips the choice of an expert, so 99 of 100 must be near; Q8_0 is only
shown.
"""

import argparse
import random
from pathlib import Path

import llama_cpp
import numpy as np
import numpy.typing as npt
import torch

from demo import talk
from demo.tokenizer import SAVED, Tokenizer
from demo.verify import QUESTIONS, gaps
from tests.trained.export import FILE_TYPES, is_exact
from tests.trained.parts import Experts
from tests.trained.train import build

TOLERANCE = 1e-2
"""How far a logit may be off, in parts of the range of all logits at its position."""
_CLOSE = 1e-3
"""Router scores no further apart than this may be ordered otherwise by rounding."""

Logits = npt.NDArray[np.float32]


def load(name: str, checkpoint: Path, is_f16: bool) -> torch.nn.Module:
    """The trained network, its matrices rounded as in an F16 file if it is held against one."""
    weights = torch.load(checkpoint, weights_only=True)["model"]
    if is_f16:
        rounded = {key: weight.half().float() for key, weight in weights.items() if not is_exact(key, weight.dim())}
        weights |= rounded
    model = build(name)
    model.load_state_dict(weights)
    return model


def of_torch(model: torch.nn.Module, rows: list[list[int]]) -> tuple[list[Logits], int]:
    """Logits [position, vocabulary] of every row, and how often the last expert taken was close to the next one."""
    n_close, found = 0, []

    def count(part: Experts, inputs: tuple[torch.Tensor]) -> None:
        nonlocal n_close
        best = part.gate_inp(inputs[0]).topk(part.n_used + 1).values
        n_close += int((best[..., -2] - best[..., -1] < _CLOSE).sum())

    for part in model.modules():
        if isinstance(part, Experts):
            part.register_forward_pre_hook(count)
    with torch.no_grad():
        for row in rows:
            found.append(model.logits(model(torch.tensor([row]))[0]).numpy())
    return found, n_close


def of_llama(model: llama_cpp.Llama, rows: list[list[int]]) -> list[Logits]:
    """Logits [position, vocabulary] of every row."""
    found = []
    for row in rows:
        model.reset()
        model.eval(row)
        found.append(np.array(model.scores[: len(row)]))
    return found


def compare(ours: list[Logits], theirs: list[Logits]) -> tuple[float, float]:
    """Prints how far they are apart, in parts of the range; returns what 99 of 100 positions keep to, and the most."""
    off, same, n_rows = [], 0, 0
    for left, right in zip(ours, theirs, strict=True):
        off.append(np.abs(left - right).max(-1) / np.ptp(left, axis=-1))
        same += int((left.argmax(-1) == right.argmax(-1)).sum())
        n_rows += len(left)
    usual, most, worst = (float(value) for value in np.quantile(np.concatenate(off), (0.5, 0.99, 1.0)))
    print(f"off by {usual:.1e} (median), {most:.1e} (99 %), {worst:.1e} (greatest) of the range; ", end="")
    print(f"best token the same {same} of {n_rows}")
    return most, worst


def main() -> int:
    """Parses the arguments, compares, and lets the file answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("windowed", "deltas"))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--conversations", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact = {"flash_attn": False, "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    settings = {"use_extra_bufts": False, "logits_all": True, "n_ctx": 1024, "n_threads": 1}
    model = llama_cpp.Llama(str(options.file), verbose=False, **settings, **exact)
    tokenizer, rng = Tokenizer.load(SAVED), random.Random(talk.HELD_OUT_SEED)
    rows = [tokenizer.conversation(talk.conversation(rng))[0][:1024] for _ in range(options.conversations)]
    kind = int(model.metadata["general.file_type"])
    is_f16 = kind == FILE_TYPES["F16"]
    ours, n_close = of_torch(load(options.name, options.checkpoint, is_f16), rows)
    print(f"{sum(map(len, rows))} tokens in {len(rows)} conversations; {n_close} choices of experts within {_CLOSE}")
    most, worst = compare(ours, of_llama(model, rows))
    leads: list[float] = []
    for question in QUESTIONS:
        text, lead = gaps(model, tokenizer, question, limit=300)
        leads += lead
        print(f"\n> {question}   ({len(lead)} tokens, smallest lead {min(lead):.1e})\n{text}")
    values = np.array(leads)
    quantiles = " ".join(f"{value:.1e}" for value in np.quantile(values, (0.001, 0.01, 0.05, 0.25, 0.5)))
    print(f"\nlead of the best of {len(values)} tokens (0.1/1/5/25/50 %, in parts of the range): {quantiles}")
    print(", ".join(f"below {bound:g}: {int((values < bound).sum())}" for bound in (1e-4, 1e-3, 2e-3, 1e-2, 5e-2)))
    if kind == FILE_TYPES["F32"]:
        return 1 if worst > TOLERANCE else 0
    return 1 if is_f16 and most > TOLERANCE else 0


if __name__ == "__main__":
    raise SystemExit(main())
