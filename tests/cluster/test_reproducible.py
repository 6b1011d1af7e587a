"""With ``--reproducible`` an answer's text and logprobs are the same bits alone and in company, whatever was cached."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.commands import LONG_FORM
from tests.cluster.serving import Served, serve

TRAINED = Path(__file__).parents[1] / "trained"
WORDS = "It was a dark night, and the wind was cold. " * 8


def ask(served: Served, number: int, n_tokens: int) -> tuple[str, list[Any], int]:
    """Text, logprobs of all tokens, and how many tokens of the prompt were there."""
    with served.client() as client:
        answer = client.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": f"{WORDS[: 90 * number]}Tell me about owl number {number}."}],
            max_tokens=n_tokens,
            temperature=0.9,
            seed=number,
            logprobs=True,
            top_logprobs=5,
        )
    choice, usage = answer.choices[0], answer.usage
    assert choice.logprobs is not None and choice.logprobs.content is not None and usage is not None
    assert usage.prompt_tokens_details is not None
    told = [entry.model_dump() for entry in choice.logprobs.content]
    return str(choice.message.content), told, usage.prompt_tokens_details.cached_tokens or 0


@pytest.mark.parametrize(("name", "n_ranks"), [pytest.param("windowed", 2, marks=LONG_FORM), ("deltas", 3)])
def test_an_answer_alone_and_in_company(tmp_path: Path, cache: Path, name: str, n_ranks: int) -> None:
    """With little room, so that some make way for others and begin anew."""
    options = ("--reproducible", "--parallel", "5", "--context", "512")
    with serve(str(TRAINED / f"{name}.gguf"), tmp_path, cache, n_ranks, *options, name=name) as served:
        alone = {number: ask(served, number, 16) for number in (1, 3)}
        with ThreadPoolExecutor(5) as pool:
            company = list(pool.map(lambda number: ask(served, number, 16), [0, 1, 2, 3, 4, 1, 5]))
        again = ask(served, 3, 16)
    for number, (text, told, _) in alone.items():
        assert company[number][:2] == (text, told) and len(told) > 1
    assert company[5][:2] == alone[1][:2]
    assert again[:2] == alone[3][:2] and again[2] != alone[3][2]
