"""Holds the exported file against llama.cpp: same tokens as our tokenizer, sensible answers, few near ties.

``python -m demo.verify src/tpi/assets/demo.gguf``. Needs llama-cpp-python; prints, and exits 1 when tokenizers differ.
"""

import argparse
import random
import re
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from demo import talk, words
from demo.stories import article
from demo.tokenizer import ASSISTANT, BOS, END, SAVED, USER, Tokenizer

ODD_TEXTS = (
    "naïve café, 世界! 🦊",
    "  two  spaces\n\n\n and\ttabs ",
    "It's I'll you're we've 12x 3.14 ...?!",
    "ünḯ códe ² ½ \u2167 x\u00a0y\u2003z",
    " ",
    "\n",
    "a\r\nb ",
)
QUESTIONS = (
    "Tell me a story about a fox and a lantern.",
    "Tell me a story about a dragon and a teapot.",
    "Write a short story about a mouse, an owl and a drum.",
    "Tell me a story about a girl named Zora.",
    "tell me a story about a lighthouse",
    "Tell me a story.",
    "Who are you?",
    "Why is the sky blue?",
)


def check_tokens(model: llama_cpp.Llama, tokenizer: Tokenizer, count: int = 300) -> int:
    """How many texts llama.cpp cuts otherwise than we do."""
    rng = random.Random(talk.HELD_OUT_SEED)
    texts = [text for _ in range(count) for _, text in talk.conversation(rng)]
    wrong = 0
    for text in (*texts, *ODD_TEXTS):
        theirs = model.tokenize(text.encode(), add_bos=False, special=False)
        if theirs != tokenizer.encode(text):
            print(f"differs: {text[:60]!r}\n  theirs {theirs[:30]}\n  ours   {tokenizer.encode(text)[:30]}")
            wrong += 1
    print(f"tokenizer: {wrong} of {len(texts) + len(ODD_TEXTS)} texts differ")
    return wrong


def gaps(model: llama_cpp.Llama, tokenizer: Tokenizer, question: str, limit: int = 128) -> tuple[str, list[float]]:
    """The greedy answer and, for each of its tokens, the lead of the best logit in parts of the logits' range."""
    model.reset()
    model.eval([BOS, USER, *tokenizer.encode(question), END, ASSISTANT])
    numbers: list[int] = []
    leads = []
    while len(numbers) < limit:
        logits = np.array(model.scores[model.n_tokens - 1])
        second, first = np.partition(logits, -2)[-2:]
        leads.append(float((first - second) / (first - logits.min())))
        best = int(logits.argmax())
        if best == END:
            break
        numbers.append(best)
        model.eval([best])
    return tokenizer.decode(numbers), leads


def kept(model: llama_cpp.Llama, heroes: Sequence[str], things: Sequence[str], count: int) -> tuple[int, int]:
    """Of so many greedy stories about a hero and a thing: how many name the hero, and how many the thing."""
    rng = random.Random(talk.HELD_OUT_SEED)
    with_hero = with_thing = 0
    for _ in range(count):
        hero, thing = rng.choice(heroes), rng.choice(things)
        question = f"Tell me a story about {article(hero)} and {article(thing)}."
        answer = model.create_chat_completion([{"role": "user", "content": question}], temperature=0.0, max_tokens=300)
        text = answer["choices"][0]["message"]["content"]
        with_hero += bool(re.search(rf"\b{hero}\b", text))
        with_thing += len(re.findall(rf"\b{thing}\b", text)) > 1
    return with_hero, with_thing


def main() -> int:
    """Parses the arguments and runs the three checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--stories", type=int, default=50)
    options = parser.parse_args()
    settings = {
        "flash_attn": True,
        "use_extra_bufts": False,
        "logits_all": True,
        "n_ctx": 1024,
        "n_threads": 2,
    }
    model = llama_cpp.Llama(str(options.file), verbose=False, **settings)
    tokenizer = Tokenizer.load(SAVED)
    wrong = check_tokens(model, tokenizer)
    leads: list[float] = []
    for question in QUESTIONS:
        text, lead = gaps(model, tokenizer, question)
        leads += lead
        answer = model.create_chat_completion([{"role": "user", "content": question}], temperature=0.0, max_tokens=400)
        whole = answer["choices"][0]["message"]["content"]
        same = "the same" if whole.startswith(text) else "NOT the same"
        print(f"\n> {question}   ({len(lead)} tokens, smallest lead {min(lead):.1e}, {same} by chat template)\n{whole}")
    values = np.array(leads)
    print(f"\nlead of the best token over {len(values)} tokens, in parts of the logits' range:")
    print(
        "  quantiles 0.1/1/5/25/50 %:",
        " ".join(f"{q:.2e}" for q in np.quantile(values, (0.001, 0.01, 0.05, 0.25, 0.5))),
    )
    print(
        "  " + ", ".join(f"below {bound:g}: {int((values < bound).sum())}" for bound in (1e-4, 1e-3, 2e-3, 1e-2, 5e-2))
    )
    usual = kept(model, list(words.HEROES), list(words.OBJECTS), options.stories)
    rare = kept(model, words.RARE_HEROES, words.RARE_OBJECTS, options.stories)
    print(f"of {options.stories} stories about usual words {usual[0]} have the hero and {usual[1]} the thing, ", end="")
    print(f"of as many about rare words {rare[0]} and {rare[1]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
