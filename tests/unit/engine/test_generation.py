"""What is told of an answer's tokens: with the words that they are part of, and never of a stop string's."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest

from tpi.engine.generation import Delta, Generation, Request
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.runtime.logits import Row

PIECES = [b"END", b"a", b" E", b"N", b"D", b"x", "é".encode()[:1], "é".encode()[1:], b"b E", b""]
STOP, END = "END", 99


class Vocabulary:
    def is_end_of_generation(self, token: int) -> bool:
        return token == END

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        return PIECES[token]


def played(tokens: list[int], stop: tuple[str, ...] = (STOP,)) -> list[Delta]:
    """The deltas of an answer that draws these tokens."""
    settings = GenerationSettings(len(tokens), stop, raw=True, n_logprobs=1)
    request = Request((1,), SamplingSettings(temperature=0), settings)
    vocabulary: Any = Vocabulary()
    with ThreadPoolExecutor(1) as helper:
        generation = Generation(request, vocabulary, 100, lambda: None, helper, {})
        for token in tokens:
            if not generation.is_over:
                logits = np.zeros(100, np.float32)
                logits[token] = 9
                generation.draw(Row(logits), partial(Row, logits), 100)
    assert generation.is_over
    return generation.take()


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ([1, 5, 0], [("a", [1]), ("x", [5])]),
        ([1, 2, 3, 4], [("a", [1]), (" ", [2])]),
        ([1, 2, 3, 5, 1], [("a", [1]), (" ", [2]), ("ENx", [3, 5]), ("a", [1])]),
        ([1, 8, 3, 4], [("a", [1]), ("b ", [8])]),
        ([6, 7, 1], [("é", [6, 7]), ("a", [1])]),
        ([9, 1, 9], [("a", [9, 1]), ("", [9])]),
        ([1, 6], [("a", [1]), ("�", [6])]),
        ([2, 3], [(" ", [2]), ("EN", [3])]),
        ([2, END], [(" ", [2]), ("E", [])]),
    ],
)
def test_tokens_are_told_with_their_words(tokens: list[int], told: list[tuple[str, list[int]]]) -> None:
    found = played(tokens)
    assert [(delta.text, [entry.token for entry in delta.logprobs]) for delta in found] == told


def test_where_tokens_begin() -> None:
    found = [entry for delta in played([1, 6, 7, 2, 6, 7, 5], ()) for entry in delta.logprobs]
    assert [entry.start for entry in found] == [0, 1, 1, 2, 4, 4, 5], "parts of a character begin where it does"
