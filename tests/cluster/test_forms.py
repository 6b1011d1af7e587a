"""Tools, schemas and beginnings of answers, by official clients against four ranks: a small model that knows of none of
these keeps to their form nevertheless."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import agents
import anthropic
import ollama
import openai
import pytest

from tests.cluster.serving import Served, serve

ASKED: Any = [{"role": "user", "content": "How is the weather in Rome?"}]
SCHEMA: Any = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
DRAWN = {"seed": 7, "max_tokens": 120}


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Served]:
    with serve("demo", tmp_path_factory.mktemp("four"), cache, 4) as served:
        yield served


@pytest.fixture(scope="module")
def client(four: Served) -> Iterator[openai.OpenAI]:
    with four.client() as found:
        yield found


def is_asked(found: Any) -> bool:
    """It follows the schema."""
    return set(found) == {"city", "days"} and len(found["city"]) <= 12 and 1 <= found["days"] <= 9


def chat(client: openai.OpenAI, **more: Any) -> Any:
    asked: dict[str, Any] = {"model": "demo", "messages": ASKED, **DRAWN, **more}
    return client.chat.completions.create(**asked)


def test_a_tool_that_must_be_called(client: openai.OpenAI) -> None:
    one = {"type": "function", "function": {"name": "weather"}}
    [choice] = chat(client, tools=TOOLS, tool_choice=one, parallel_tool_calls=False).choices
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather" and call.id
    assert is_asked(json.loads(call.function.arguments))
    chunks = list(chat(client, tools=TOOLS, tool_choice=one, parallel_tool_calls=False, stream=True))
    parts = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert [part.function.name for part in parts if part.id] == ["weather"] and len(parts) > 3
    assert "".join(part.function.arguments for part in parts) == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_s_result_and_an_answer(client: openai.OpenAI) -> None:
    first = chat(client, tools=TOOLS, tool_choice="required").choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "warm"} for call in first.tool_calls]
    told = chat(client, messages=[*ASKED, first, *results], tools=TOOLS, tool_choice="none").choices[0]
    assert told.message.content and not told.message.tool_calls


def test_formats(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "asked", "schema": SCHEMA, "strict": True}}
    assert is_asked(json.loads(chat(client, response_format=form).choices[0].message.content))
    chunks = chat(client, response_format=form, stream=True)
    assert is_asked(json.loads("".join(chunk.choices[0].delta.content or "" for chunk in chunks)))
    for more, pattern in (
        ({"guided_regex": "[a-c]{3}!"}, r"[a-c]{3}!"),
        ({"guided_choice": ["yes.", "no"]}, r"yes\.|no"),
        ({"grammar": 'root ::= "x" [0-9] [0-9]? "y"'}, r"x[0-9][0-9]?y"),
    ):
        told = chat(client, extra_body=more).choices[0]
        assert re.fullmatch(pattern, told.message.content) and told.finish_reason == "stop"
    raw = client.completions.create(model="demo", prompt="Once", extra_body={"guided_regex": " upon [a-z]{2}"}, **DRAWN)  # type: ignore[call-overload]
    assert re.fullmatch(" upon [a-z]{2}", raw.choices[0].text)
    told = client.responses.create(
        model="demo",
        input="Rome?",
        text={"format": {"type": "json_schema", "name": "asked", "schema": SCHEMA}},
        max_output_tokens=120,
    )
    assert is_asked(json.loads(told.output_text))


def test_a_beginning_is_gone_on_with(client: openai.OpenAI) -> None:
    begun = {"role": "assistant", "content": "Once upon a"}
    told = [
        chat(client, messages=[*ASKED, begun | {"prefix": True}], temperature=0).choices[0].message.content,
        chat(client, messages=[*ASKED, begun], temperature=0, extra_body={"continue_final_message": True})
        .choices[0]
        .message.content,
    ]
    assert (
        told[0] == told[1]
        and told[0].startswith(" ")  # goes on where the words end
        and told[0].split()[0].strip(",.") in ("time", "hill", "day")
    )


def test_responses_call_tools(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", **TOOLS[0]["function"], "strict": True}]
    first = client.responses.create(
        model="demo", input="Rome?", tools=tools, tool_choice="required", max_output_tokens=120
    )
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls and all(is_asked(json.loads(call.arguments)) for call in calls)
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "warm"} for call in calls]
    told = client.responses.create(
        model="demo", input=results, previous_response_id=first.id, tools=tools, tool_choice="none", max_output_tokens=8
    )
    assert told.output_text


def test_others_clients(four: Served) -> None:
    asker = ollama.Client(four.root, timeout=60)
    options = {"seed": 7, "num_predict": 120}
    told = asker.chat("demo", ASKED, format=SCHEMA, options=options)
    assert is_asked(json.loads(told.message.content or ""))
    with anthropic.Anthropic(base_url=four.root, api_key="none", max_retries=0, timeout=60) as client:
        tool: Any = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}
        asked: Any = {"model": "demo", "max_tokens": 120, "messages": ASKED, "tools": [tool]}
        asked["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
        with client.messages.stream(**asked) as stream:
            message: Any = stream.get_final_message()
        assert message.stop_reason == "tool_use" and is_asked(message.content[-1].input)
        begun = [*ASKED, {"role": "assistant", "content": "Once upon a"}]
        words: Any = client.messages.create(model="demo", max_tokens=3, messages=begun).content[0]
        assert words.text and not words.text.startswith("Once")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "schema"),
        ({"extra_body": {"guided_regex": "("}}, "regex|expression|grammar"),
        ({"extra_body": {"grammar": 'root ::= ("a"'}}, "grammar"),
        ({"extra_body": {"chat_template_kwargs": {"messages": []}}}, "'messages' cannot be set"),
    ],
)
def test_what_no_answer_can_have_is_said(client: openai.OpenAI, more: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        chat(client, **more)


@pytest.mark.parametrize("kind", [agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel])
def test_an_agent_s_loop_of_tools_comes_to_its_end(four: Served, kind: Any) -> None:
    called: list[str] = []

    @agents.function_tool
    def weather(city: Literal["Rome", "Paris"]) -> str:
        """Tells the weather."""
        called.append(city)
        return f"In {city} it is warm."

    async def run() -> Any:
        async with four.async_client() as client:
            agent = agents.Agent(
                name="Guide",
                instructions="Use the tools.",
                tools=[weather],
                model=kind("demo", client),
                model_settings=agents.ModelSettings(tool_choice="required", max_tokens=800, parallel_tool_calls=False),
            )
            return await agents.Runner.run(agent, "How is the weather in Rome?", max_turns=4)

    agents.set_tracing_disabled(True)
    told = asyncio.run(run())
    assert len(called) == 1 and called[0] in ("Rome", "Paris") and told.final_output
