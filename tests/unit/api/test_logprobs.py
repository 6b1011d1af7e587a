"""Logarithms of probabilities in the older form, and what is refused beside them."""

from typing import Any

import pytest

from tests.unit.api.scripted import Line, Played
from tpi.api.openai.bodies import completion_logprobs
from tpi.api.vectors import Vectors
from tpi.api.waking import Waker
from tpi.api.workers import Workers
from tpi.engine.generation import TokenLogprob

PIECES = [b"a", b"\xf0\x9f", b"\x98\x80", b"bc"]


def test_offsets_and_names() -> None:
    """The drawn token is among the most probable; parts of characters have names of their own."""
    drawn = [TokenLogprob(n, -1.0, ((1, -0.5), (2, -0.75)), start) for n, start in ((3, 0), (1, 2), (0, 2))]
    told = completion_logprobs(drawn, lambda token: PIECES[token], 10)
    assert told["tokens"] == ["bc", "bytes:\\xf0\\x9f", "a"] and told["text_offset"] == [10, 12, 12]
    best = {"bytes:\\xf0\\x9f": -0.5, "bytes:\\x98\\x80": -0.75}
    assert told["top_logprobs"] == [best | {"bc": -1.0}, best | {"bytes:\\xf0\\x9f": -1.0}, best | {"a": -1.0}]
    assert completion_logprobs([], lambda token: b"", 3)["text_offset"] == []


CHAT: Any = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "asked", "said"),
    [
        ("/v1/completions", {"prompt": "a", "echo": True, "logprobs": 0}, "an echo with the logprobs of the prompt"),
        ("/v1/chat/completions", CHAT | {"top_logprobs": 2}, "top_logprobs is of no use without logprobs"),
        ("/v1/chat/completions", CHAT | {"dynatemp_range": 0.5}, "dynatemp_range with the value '0.5'"),
        ("/v1/chat/completions", CHAT | {"n_predict": 5}, "n_predict with the value '5'"),
        ("/api/chat", CHAT | {"options": {"lora": ["x"]}}, "lora with the value"),
        ("/completion", {"prompt": "a", "t_max_predict_ms": 5}, "t_max_predict_ms with the value '5'"),
    ],
)
def test_what_would_change_the_answer_is_refused(server: Played, path: str, asked: dict[str, Any], said: str) -> None:
    server.engine.line = Line(("a",))
    status, told = server.post(path, asked)
    assert status == 400 and said in str(told["error"])


@pytest.mark.parametrize(("end", "cut"), [(9, (1, 2, 9)), (None, (1, 2, 3))])
def test_a_text_that_is_cut_keeps_its_end(end: int | None, cut: tuple[int, ...]) -> None:
    class Vocabulary:
        def tokenize(self, text: str, **_: bool) -> list[int]:
            return [1, *map(int, text), *([] if end is None else [end])]

    class Engine:
        vocabulary = Vocabulary()

    vectors = Vectors(Engine(), Workers(1), Waker())  # type: ignore[arg-type]
    assert vectors.cut(vectors.tokens_of("2345"), 3) == cut
    assert vectors.cut(vectors.tokens_of("2"), 3) == vectors.tokens_of("2")
