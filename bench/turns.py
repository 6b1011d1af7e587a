"""What sharing passes and cells is worth to callers of one device: how soon a second turn begins, and how others fare
while a long prompt is read.

    python -m bench turns --shape tinyllama-1.1b --quant q4_0
    python -m bench turns --model tests/trained/deltas.gguf --prompt-tokens 900
    python -m bench readers --shape tinyllama-1.1b --quant q4_0

Prompts are random tokens, of which those of each round are new. Times are those that the engine tells.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.cluster import find_model
from bench.models import RandomModel
from bench.report import Report
from bench.shapes import SHAPES, find_shape
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.cluster.master import Master
from tpi.config import Folders, MasterSettings, Resources
from tpi.engine.chatprompt import Prompt
from tpi.engine.engine import Engine
from tpi.engine.generation import Generation
from tpi.engine.language import Language
from tpi.engine.settings import GenerationSettings, SamplingSettings

_FIRST_WORD = 259
_NEW = 16
"""Tokens of a new question."""
_ANSWER, _SHOWN = 80, 16
"""Tokens of an answer, and how many of its last ones are no thinking."""
_N_OTHERS = 4
_N_GAPS = 60
_GREEDY = SamplingSettings(temperature=0)


@dataclass(frozen=True)
class _Desk:
    """An engine of one device, and random tokens for it."""

    engine: Engine
    chooser: random.Random

    def tokens(self, n: int) -> list[int]:
        return [self.chooser.randrange(_FIRST_WORD, self.engine.vocabulary.n_tokens) for _ in range(n)]

    def begin(self, tokens: Sequence[int], n_tokens: int, marks: tuple[int, ...] = ()) -> Generation:
        settings = GenerationSettings(n_tokens, raw=True)
        return self.engine.ask(Prompt(tuple(tokens), marks), _GREEDY, settings)

    def answer(self, tokens: Sequence[int], n_tokens: int, marks: tuple[int, ...] = ()) -> Generation:
        generation = self.begin(tokens, n_tokens, marks)
        list(self.engine.follow(generation))
        return generation


@contextmanager
def _desk(given: argparse.Namespace, n_context: int) -> Iterator[_Desk]:
    cache = find_folders().cache
    path = given.model
    if path is None:
        shape = find_shape(given.shape)
        if given.layers is not None:
            shape = replace(shape, name=f"{shape.name}-{given.layers}-layers", n_layers=given.layers)
        if shape.n_context < n_context:
            shape = replace(shape, name=f"{shape.name}-{n_context}", n_context=n_context)
        path = find_model(RandomModel(shape, given.quant), given.work or cache / "bench")
    folders = Folders(cache / "bench" / "state", cache / "bench" / "shards", cache)
    resources = Resources(n_threads=given.threads)
    settings = MasterSettings(
        path, folders, resources, context=n_context, n_parallel=_N_OTHERS + 1, bind="127.0.0.1", port=0
    )
    with (
        Language(path) as language,
        Master(settings) as master,
        master.form(lambda event: None) as cluster,
        Engine(cluster, language) as engine,
    ):
        desk = _Desk(engine, random.Random(given.seed))
        desk.answer(desk.tokens(_NEW), _NEW)  # fills the window
        yield desk


def _options(what: str, n_prompt: int, n_rounds: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"bench {what}")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--layers", type=int, metavar="N", help="so many of the shape's layers only")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a GGUF file instead of a shape")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=n_rounds)
    parser.add_argument("--prompt-tokens", type=int, default=n_prompt)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    return parser


def turns(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench turns``: the first token's time of a later request ÷ that of the first, which had to read all
    of it."""
    given = _options("turns", 1000, 5).parse_args(arguments)
    n_prompt, n_context = given.prompt_tokens, (given.prompt_tokens + _ANSWER + 2 * _NEW + 31) // 32 * 32
    ratios: dict[str, list[float]] = {"next_turn": [], "thinking_stripped": [], "same_instructions": []}
    with _desk(given, n_context) as desk:
        for _ in range(given.rounds):
            for name, found in ratios.items():
                prompt, marks = desk.tokens(n_prompt), (n_prompt - _NEW,)
                first = desk.answer(prompt, _SHOWN if name == "next_turn" else _ANSWER, marks)
                if name == "next_turn":
                    then = [*first.tokens, *desk.tokens(_NEW)]
                elif name == "thinking_stripped":
                    then = [*prompt, *first.tokens[-_SHOWN:], *desk.tokens(_NEW)]
                else:
                    then = [*prompt[:-_NEW], *desk.tokens(_NEW)]
                second = desk.answer(then, 1, marks)
                found.append(second.answer.time_to_first_token_s / first.answer.time_to_first_token_s)
        model = given.model.name if given.model is not None else given.shape
        yield Report("turns").add(
            model=model,
            prompt_tokens=n_prompt,
            threads=given.threads,
            **{f"{name}_ratio": statistics.median(found) for name, found in ratios.items()},
        )


def readers(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench readers``: four answers grow while a long prompt is read."""
    given = _options("readers", 4000, 1).parse_args(arguments)
    n_context = (given.prompt_tokens + _N_OTHERS * (given.prompt_tokens + 4 * _N_GAPS) + 31) // 32 * 32
    for _ in range(given.rounds):
        with _desk(given, n_context) as desk:
            yield _read_beside_others(desk, given)


def _read_beside_others(desk: _Desk, given: argparse.Namespace) -> Report:
    n_prompt = given.prompt_tokens
    alone = desk.answer(desk.tokens(n_prompt), 1).answer.time_to_first_token_s
    others = [desk.begin(desk.tokens(32), n_prompt + 3 * _N_GAPS) for _ in range(_N_OTHERS)]
    _gaps(desk, others, lambda: all(other.answer.n_tokens > 2 for other in others))
    before = _gaps(desk, others, lambda: others[0].answer.n_tokens > _N_GAPS)
    reader = desk.begin(desk.tokens(n_prompt), 1)
    meanwhile = _gaps(desk, others, lambda: reader.is_over)
    n_told = others[0].answer.n_tokens
    after = _gaps(desk, others, lambda: others[0].answer.n_tokens > n_told + _N_GAPS)  # their texts are longer by now
    return Report("readers").add(
        model=given.model.name if given.model is not None else given.shape,
        prompt_tokens=n_prompt,
        threads=given.threads,
        gap_p99_before_s=float(np.percentile(before, 99)),
        gap_p99_s=float(np.percentile(meanwhile, 99)),
        gap_p99_after_s=float(np.percentile(after, 99)),
        gap_ratio=float(np.percentile(meanwhile, 99) / np.percentile(before, 99)),
        gap_ratio_to_after=float(np.percentile(meanwhile, 99) / np.percentile(after, 99)),
        gap_median_ratio=float(np.median(meanwhile) / np.median(before)),
        reader_rate_ratio=alone / reader.answer.time_to_first_token_s,
        n_gaps=len(meanwhile),
    )


def _gaps(desk: _Desk, others: Sequence[Generation], is_enough: Callable[[], bool]) -> list[float]:
    """Between tokens of each, until there are enough, or one of them has ended."""
    gaps, counts = list[float](), [other.answer.n_tokens for other in others]
    latest_s = [time.perf_counter()] * len(others)
    while not is_enough() and not any(other.is_over for other in others):
        desk.engine.scheduler.step()
        now_s = time.perf_counter()
        for number, other in enumerate(others):
            if other.answer.n_tokens > counts[number]:
                gaps.append(now_s - latest_s[number])
                counts[number], latest_s[number] = other.answer.n_tokens, now_s
    return gaps
