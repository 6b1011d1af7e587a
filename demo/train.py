"""Trains the demo model on freshly generated conversations until the time is up.

``python -m demo.train --minutes 100 --out demo-run``. One process; PyTorch's threads compute. The learning rate follows
the clock (warm-up, then a cosine to the end), so the run ends when planned on any machine. A checkpoint is kept in
``--out`` and taken up again.
"""

import argparse
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from demo import talk
from demo.model import Shape, Storyteller
from demo.talk import HELD_OUT_SEED, TOKENIZER_SEED, TRAINING_SEED
from demo.tokenizer import ASSISTANT, BOS, END, SAVED, USER, Tokenizer, train

PEAK_RATE, FINAL_RATE, WARMUP_STEPS = 2e-3, 2e-5, 100
REQUEST_WEIGHT = 4.0
"""How much a word that the request asked for counts in the loss, against 1 for the others."""
PROMPTS = ("Tell me a story about a fox and a lantern.", "Tell me a story about a robot who finds a flute.")


@dataclass(frozen=True)
class Batch:
    """Conversations padded to one length: tokens and weights [batch, position].

    A weight says how much the prediction of the *next* token counts; 0 where the assistant does not speak next.
    """

    tokens: Tensor
    weights: Tensor


def load_tokenizer() -> Tokenizer:
    """The committed tokenizer, or a newly trained one where there is none."""
    if not SAVED.exists():
        rng = random.Random(TOKENIZER_SEED)
        texts = [text for _ in range(20000) for _, text in talk.conversation(rng)]
        train(texts, Shape().vocabulary).save(SAVED)
    return Tokenizer.load(SAVED)


def weights_of(numbers: list[int], own: list[bool], plain: set[int]) -> list[float]:
    """How much each token counts: what the assistant takes over from the last request weighs more."""
    weights: list[float] = []
    asked: set[int] = set()
    for index, number in enumerate(numbers):
        if number == USER:
            asked = set(numbers[index : numbers.index(END, index) + 1]) - plain - {USER, END}
        weights.append((REQUEST_WEIGHT if number in asked else 1.0) if own[index] else 0.0)
    return weights


def batches(seed: int, tokenizer: Tokenizer, size: int, pool: int = 1024) -> Iterator[Batch]:
    """Endless batches of about ``size`` tokens; conversations of like length share a batch."""
    rng = random.Random(seed)
    context = Shape().context
    plain = set(tokenizer.encode(talk.PLAIN_WORDS))
    while True:
        pairs = sorted(tokenizer.conversation(talk.conversation(rng)) for _ in range(pool))
        rows = [(numbers[:context], weights_of(numbers, own, plain)[:context]) for numbers, own in pairs]
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[float]]]] = [[]]
        for row in rows:
            if (len(groups[-1]) + 1) * len(row[0]) > size:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = len(group[-1][0])
            tokens = torch.full((len(group), width), END)
            weights = torch.zeros((len(group), width))
            for index, (numbers, counts) in enumerate(group):
                tokens[index, : len(numbers)] = torch.tensor(numbers)
                weights[index, : len(numbers) - 1] = torch.tensor(counts[1:])
            yield Batch(tokens, weights)


def losses_of(model: Storyteller, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross entropy in nats of each token that the assistant says, and its weight; both [tokens]."""
    learned = batch.weights > 0
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.logits(model(batch.tokens)[learned])
    targets = batch.tokens.roll(-1, dims=1)[learned]
    return F.cross_entropy(scores.float(), targets, reduction="none"), batch.weights[learned]


def validate(model: Storyteller, held_out: list[Batch]) -> float:
    """Mean cross entropy in nats over all tokens that the assistant says; every token counts the same."""
    with torch.no_grad():
        return float(torch.cat([losses_of(model, batch)[0] for batch in held_out]).mean())


def answer(model: Storyteller, tokenizer: Tokenizer, question: str, limit: int = 220) -> str:
    """The greedy answer to one question."""
    numbers = [BOS, USER, *tokenizer.encode(question), END, ASSISTANT]
    start = len(numbers)
    with torch.no_grad():
        while len(numbers) < start + limit:
            best = int(model.logits(model(torch.tensor([numbers]))[0, -1]).argmax())
            if best == END:
                break
            numbers.append(best)
    return tokenizer.decode(numbers[start:])


def rate_at(step: int, part: float) -> float:
    """Learning rate at a step, when that part (0 to 1) of the time is over."""
    cosine = FINAL_RATE + (PEAK_RATE - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
    return cosine * min(1.0, (step + 1) / WARMUP_STEPS)


def main() -> None:
    """Parses the arguments and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--out", type=Path, default=Path("demo-run"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    torch.manual_seed(TRAINING_SEED)
    run(options.out, options.minutes * 60, options.batch_tokens)


def run(out: Path, limit_s: float, batch_tokens: int) -> None:
    """Trains for that time, counted over restarts, and leaves ``checkpoint.pt`` in ``out``."""
    tokenizer = load_tokenizer()
    model = Storyteller(Shape())
    matrices = [weight for weight in model.parameters() if weight.dim() == 2]
    gains = [weight for weight in model.parameters() if weight.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    checkpoint = out / "checkpoint.pt"
    step, spent_s, seen = 0, 0.0, 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent_s, seen = saved["step"], saved["spent_s"], saved["seen"]
    source = batches(HELD_OUT_SEED, tokenizer, batch_tokens)
    held_out = [next(source) for _ in range(16)]
    feed = batches(TRAINING_SEED + 1000 * step, tokenizer, batch_tokens)
    n_weights = sum(weight.numel() for weight in model.parameters())
    print(f"{n_weights} weights, {torch.get_num_threads()} threads, from step {step}", flush=True)
    saved_s, last, mean = spent_s, time.monotonic(), 0.0
    while spent_s < limit_s:
        batch = next(feed)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, spent_s / limit_s)
        losses, weights = losses_of(model, batch)
        loss = (losses * weights).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, seen = step + 1, seen + batch.tokens.numel()
        value = float(loss.detach())
        mean = 0.98 * mean + 0.02 * value if mean else value
        now = time.monotonic()
        spent_s, last = spent_s + now - last, now
        if step % 50 == 0:
            rate = optimizer.param_groups[0]["lr"]
            print(f"step {step} time {spent_s:.0f}s tokens {seen} rate {rate:.2e} loss {mean:.4f}", flush=True)
        if spent_s - saved_s > 180 or spent_s >= limit_s:
            saved_s = spent_s
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "spent_s": spent_s, "seen": seen}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)
            print(f"step {step} held-out loss {validate(model, held_out):.4f}", flush=True)
    for prompt in PROMPTS:
        print(f"> {prompt}\n{answer(model, tokenizer, prompt)}\n", flush=True)


if __name__ == "__main__":
    main()
