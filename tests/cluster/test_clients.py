"""Other APIs than OpenAI's chats, by their official clients, against four ranks that compute."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import pytest

from tests.cluster.serving import Served, serve

FOX = "Tell me a story about a fox and a lantern."
ASKED = [{"role": "user", "content": FOX}]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Served]:
    with serve("demo", tmp_path_factory.mktemp("four"), cache, 4, "--ollama-port", "0") as served:
        yield served


@pytest.fixture(scope="module")
def text(four: Served) -> str:
    """What the model says to that, greedily, in 24 tokens."""
    with four.client() as client:
        told = client.chat.completions.create(model="demo", messages=ASKED, max_tokens=24, temperature=0)  # type: ignore[arg-type]
        return str(told.choices[0].message.content)


def test_openai_s_responses(four: Served, text: str) -> None:
    with four.client() as client:
        told = client.responses.create(model="demo", input=FOX, max_output_tokens=24, temperature=0)
        assert told.output_text == text and told.status == "incomplete"
        stream = client.responses.create(model="demo", input=FOX, max_output_tokens=24, temperature=0, stream=True)
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == text
        more = client.responses.create(model="demo", input="Go on.", previous_response_id=told.id, max_output_tokens=5)
        assert more.usage is not None and told.usage is not None
        assert more.usage.input_tokens > told.usage.input_tokens + 24
        assert more.usage.input_tokens_details.cached_tokens >= told.usage.input_tokens


def test_ollama_at_its_port(four: Served, text: str) -> None:
    found = re.search(r"Ollama's is at (\S+),", four.master.wait_for(", too"))
    assert found is not None
    client = ollama.Client(found[1], timeout=60)
    options = {"temperature": 0, "num_predict": 24, "num_ctx": 512}
    told = client.chat("demo:latest", ASKED, options=options)
    assert told.message.content == text and told.done_reason == "length"
    assert told.eval_count == 24 and told.eval_duration and told.eval_duration > 1_000_000
    lines = list(client.generate("demo", FOX, options=options, stream=True))
    assert "".join(line.response or "" for line in lines) == text and lines[-1].done
    raw = client.generate("demo", "Once upon", raw=True, options=options | {"num_predict": 1})
    assert raw.response and raw.response.strip() == "a"


def test_anthropic_s_messages(four: Served, text: str) -> None:
    with anthropic.Anthropic(base_url=four.root, api_key="none", max_retries=0, timeout=60) as client:
        more: Any = {"model": "demo", "max_tokens": 24, "messages": ASKED, "extra_body": {"temperature": 0}}
        told = client.messages.create(**more)
        assert told.content[0].type == "text" and told.content[0].text == text and told.stop_reason == "max_tokens"
        n_read = told.usage.input_tokens + (told.usage.cache_read_input_tokens or 0)
        assert client.messages.count_tokens(model="demo", messages=more["messages"]).input_tokens == n_read
        with client.messages.stream(**more) as stream:
            assert "".join(stream.text_stream) == text
