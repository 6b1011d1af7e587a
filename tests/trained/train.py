"""Trains one of the two models on the demo model's conversations until the time is up.

``python -m tests.trained.train windowed --minutes 24 --out trained-run/windowed``. The minutes are of processor
time, whatever else the machine does, and the rates follow them. A checkpoint is kept in ``--out`` and taken up again.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from demo.talk import HELD_OUT_SEED, TRAINING_SEED
from demo.train import PROMPTS, Batch, answer, batches, load_tokenizer
from tests.trained import deltas, windowed
from tests.trained.optimizer import Optimizer
from tests.trained.parts import Experts

BALANCE, CLOSENESS = 0.05, 0.1
"""How much uneven use of the experts and close choices of them count in the loss."""
WARMUP_STEPS, FALLING = 40, 0.7
"""The rates rise over so many steps, and fall to zero over this last part of the time."""
N_HELD_OUT, N_SAVED_S = 16, 120


def build(name: str) -> nn.Module:
    """A new network of that name."""
    return windowed.Windowed(windowed.Shape()) if name == "windowed" else deltas.Deltas(deltas.Shape())


def losses_of(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each token that the assistant says, and its weight; both [tokens]."""
    learned = batch.weights > 0
    scores = model.logits(model(batch.tokens)[learned])
    targets = batch.tokens.roll(-1, dims=1)[learned]
    return F.cross_entropy(scores, targets, reduction="none"), batch.weights[learned]


def validate(model: nn.Module, held_out: list[Batch]) -> str:
    """Mean cross entropy over all tokens that the assistant says, and the least and greatest use of any expert."""
    with torch.no_grad():
        loss = float(torch.cat([losses_of(model, batch)[0] for batch in held_out]).mean())
    used = torch.stack([part.used for part in model.modules() if isinstance(part, Experts)])
    return f"held-out loss {loss:.4f}, experts used for {used.min():.3f} to {used.max():.3f} of a layer's choices"


def rate_at(step: int, part: float) -> float:
    """Part of the full rates at a step, when that part (0 to 1) of the time is over."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - part) / FALLING))


def main() -> None:
    """Parses the arguments and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("windowed", "deltas"))
    parser.add_argument("--minutes", type=float, default=24)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(TRAINING_SEED)
    run(build(options.name), options.out / "checkpoint.pt", options.minutes * 60, options.batch_tokens)


def run(model: nn.Module, checkpoint: Path, limit_s: float, batch_tokens: int) -> None:
    """Trains for that time, counted over restarts, and leaves the checkpoint."""
    tokenizer, optimizer = load_tokenizer(), Optimizer(model)
    step, spent_s, seen = 0, 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent_s, seen = saved["step"], saved["spent_s"], saved["seen"]
    source = batches(HELD_OUT_SEED, tokenizer, 4096)
    held_out = [next(source) for _ in range(N_HELD_OUT)]
    feed = batches(TRAINING_SEED + 1000 * step, tokenizer, batch_tokens)
    experts = [part for part in model.modules() if isinstance(part, Experts)]
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{n_weights} weights, {torch.get_num_threads()} threads, from step {step}", flush=True)
    saved_s, last, mean = spent_s, time.process_time(), 0.0
    while spent_s < limit_s:
        batch = next(feed)
        losses, weights = losses_of(model, batch)
        loss = (losses * weights).sum() / weights.sum()
        balance = torch.stack([part.balance for part in experts]).mean()
        closeness = torch.stack([part.closeness for part in experts]).mean()
        (loss + BALANCE * balance + CLOSENESS * closeness).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(step, spent_s / limit_s))
        step, seen = step + 1, seen + batch.tokens.numel()
        value = float(loss.detach())
        mean = 0.97 * mean + 0.03 * value if mean else value
        now = time.process_time()
        spent_s, last = spent_s + now - last, now
        if step % 50 == 0:
            routing = f"balance {float(balance):.3f} closeness {float(closeness):.4f}"
            print(f"step {step} {spent_s:.0f} s tokens {seen} loss {mean:.4f} {routing}", flush=True)
        if spent_s - saved_s > N_SAVED_S or spent_s >= limit_s:
            saved_s = spent_s
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "spent_s": spent_s, "seen": seen}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            print(f"step {step} {validate(model, held_out)}", flush=True)
    for prompt in PROMPTS:
        print(f"> {prompt}\n{answer(model, tokenizer, prompt)}\n", flush=True)


if __name__ == "__main__":
    main()
