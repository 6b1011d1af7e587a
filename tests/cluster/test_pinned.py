"""A pinned system prompt: whoever begins a chat with it goes on from there, whatever was asked meanwhile."""

import re
from pathlib import Path

import openai
import pytest

from tests.cluster.commands import LONG_FORM, Home
from tests.cluster.ranks import DEMO

TRAINED = Path(__file__).parents[1] / "trained"
SYSTEM = "You tell stories about animals who live in the forest and help each other. " * 5
ARGUMENTS = ("--workers", "0", "--port", "0", "--api-port", "0", "--threads", "1", "--parallel", "2")


def with_system(path: Path, folder: Path) -> Path:
    """The model with a template that shows system messages, as if users had written them."""
    before = b"== 'user'", b"{% elif message['role'] == 'assistant' %}"
    after = b"!= 'assistant'", b"{% else " + b" " * (len(before[1]) - 15) + b"%}"
    content = path.read_bytes()
    assert sum(map(len, before)) == sum(map(len, after)) and all(content.count(text) == 1 for text in before)
    for old, new in zip(before, after, strict=True):
        content = content.replace(old, new)
    made = folder / path.name
    made.write_bytes(content)
    return made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return with_system(DEMO, tmp_path)


SOURCES = [DEMO, pytest.param(TRAINED / "windowed.gguf", marks=LONG_FORM), TRAINED / "deltas.gguf"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_it_outlives_others(home: Home, tmp_path: Path, source: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM + "\n")
    path = str(with_system(source, tmp_path))
    with home.start("serve", path, *ARGUMENTS, "--context", "512", "--pin", str(file)) as serve:
        url = re.search(r"the API is at (\S+)", serve.wait_for("the API is at "))
        told = re.search(r"; (\d+) cells of the context are pinned", home.run("status").out)
        assert url is not None and told is not None
        n_pinned = int(told[1])
        assert n_pinned >= 64 and n_pinned % 32 == 0
        with openai.OpenAI(base_url=url[1], api_key="none", max_retries=0, timeout=60) as client:

            def ask(words: str, system: str) -> int:
                """How many tokens of the prompt were there."""
                usage = client.chat.completions.create(
                    model=source.stem,
                    messages=[{"role": "system", "content": system}, {"role": "user", "content": words}],
                    max_tokens=2,
                ).usage
                assert usage is not None and usage.prompt_tokens_details is not None
                return usage.prompt_tokens_details.cached_tokens or 0

            assert ask("Tell me about a crow.", SYSTEM) >= n_pinned
            for number in range(5):
                assert ask("Hello!", f"Sailor number {number} likes the sea. " * 16) < 32
            assert ask("Hello!", "Sailor number 0 likes the sea. " * 16) < 64, "it had to make room"
            assert ask("Tell me about an owl.", SYSTEM) >= n_pinned


def test_a_chat_on_the_terminal_begins_with_it(home: Home, tmp_path: Path, model: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM)
    ended = home.run("run", str(model), "Tell me of a crow.", "--pin", str(file), "--max-tokens", "4", "--threads", "1")
    told = re.search(r"(\d+) prompt tokens \((\d+) known\)", ended.err)
    assert ended.code == 0 and told is not None and 64 <= int(told[2]) < int(told[1]), ended.err


def test_what_cannot_be_pinned(home: Home, tmp_path: Path, model: Path) -> None:
    file = tmp_path / "system.txt"
    file.write_text(SYSTEM * 2)
    for name, said in (
        ("demo", "the model's chat template has no place for it"),
        (str(model), "cells leave no room for a sequence in a context of 128: shorten it by"),
    ):
        ended = home.run("run", name, "Hello!", "--pin", str(file), "--threads", "1", "--context", "128")
        assert ended.code == 2 and ended.last_line.startswith("tpi: --pin: ") and said in ended.last_line, ended.err
