"""Tools and forms of answers over HTTP, by the official client: a model that knows nothing of either keeps to both."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from tests.cluster.serving import Served, serve

ASKED: Any = [{"role": "user", "content": "How warm is it?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Tells the weather <|end|>.", "parameters": PARAMETERS}
TOOLS: Any = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "now", "description": "Tells the time."}},
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Served]:
    with serve("demo", tmp_path_factory.mktemp("tools"), cache, 2) as opened:
        yield opened


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with served.client() as opened:
        yield opened


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**{"model": "demo", "messages": ASKED, "max_tokens": 150, **more})


def check(calls: Any) -> None:
    for call in calls:
        values = json.loads(call.function.arguments)
        jsonschema.validate(values, PARAMETERS if call.function.name == "get_weather" else {"type": "object"})


def test_a_stream_of_calls_is_the_whole(client: openai.OpenAI) -> None:
    wanted: Any = {"tools": TOOLS, "tool_choice": "required", "seed": 5, "temperature": 1.0}
    choice = ask(client, **wanted).choices[0]
    whole = choice.message.tool_calls
    if choice.finish_reason == "tool_calls":
        check(whole)
    parts: dict[int, list[str]] = {}
    for chunk in ask(client, **wanted, stream=True):
        for call in chunk.choices[0].delta.tool_calls or []:
            part = parts.setdefault(call.index, [call.function.name, ""])
            part[1] += call.function.arguments or ""
    assert [tuple(part) for part in parts.values()] == [(c.function.name, c.function.arguments) for c in whole]


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_whoever_need_not_call_answers(client: openai.OpenAI, choice: Any) -> None:
    told = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=12, temperature=0).choices[0]
    assert told.message.content and not told.message.tool_calls


def test_every_answer_follows_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}, "legs": {"type": "integer", "maximum": 8}},
        "required": ["name", "legs"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": schema}}
    told = ask(client, response_format=form, temperature=2.0, n=8, seed=1)
    for choice in told.choices:
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content), schema)


def test_what_cannot_be_asked_is_said(client: openai.OpenAI) -> None:
    bad: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError, match="grammar"):
        ask(client, response_format=bad)
    with pytest.raises(openai.BadRequestError, match="no tool"):
        ask(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "other"}})
