"""OpenAI's chats: what requests come down to, and what the official client gets."""

import threading
from typing import Any

import openai
import pytest

from tests.unit.api.scripted import Line, Played
from tpi.api.asks import TextAsk
from tpi.api.errors import Problem
from tpi.api.openai import completions
from tpi.api.openai.chats import read_chat
from tpi.api.openai.schema import ChatRequest
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall
from tpi.errors import UsageError

HELLO = {"role": "user", "content": "Hello"}
WEATHER = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "time", "strict": True}}]
WEATHER_TOOL, TIME_TOOL = Tool("weather", "Tells it.", {"type": "object"}), Tool("time", is_strict=True)


def read(**more: Any) -> ChatAsk:
    return read_chat(ChatRequest.model_validate({"messages": [HELLO]} | more))


def test_messages() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a":1}'}}
    given = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "Hi", "name": "Ann"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "warm"},
        {"role": "assistant", "function_call": {"name": "time", "arguments": "{}"}},
        {"role": "function", "name": "time", "content": "noon"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    ]
    assert read(messages=given).messages == (
        Message("system", "Be brief."),
        Message("user", "Hi", name="Ann"),
        Message("assistant", "", "hm", (ToolCall("c1", "weather", '{"a":1}'),)),
        Message("tool", "warm", tool_call_id="c1"),
        Message("assistant", "", tool_calls=(ToolCall("call_4", "time", "{}"),)),
        Message("tool", "noon", tool_call_id="call_4", name="time"),
        Message("assistant", "no"),
    )


def test_tools_and_choices() -> None:
    plain = read(tools=TOOLS)
    assert plain.tools == (WEATHER_TOOL, TIME_TOOL) and plain.tool_choice == "auto" and plain.calls_in_parallel
    assert read(tools=TOOLS, tool_choice="none").tool_choice == "none"
    assert read(tools=TOOLS, tool_choice="required", parallel_tool_calls=False).calls_in_parallel is False
    named = read(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "time"}})
    assert (named.tool_choice, named.tool_name) == ("required", "time")
    some = {"mode": "required", "tools": [{"type": "function", "function": {"name": "time"}}]}
    allowed = read(tools=TOOLS, tool_choice={"type": "allowed_tools", "allowed_tools": some})
    assert (allowed.tools, allowed.tool_choice) == ((TIME_TOOL,), "required")
    older = read(functions=[WEATHER], function_call={"name": "weather"})
    assert (older.tools, older.tool_name, older.calls_in_parallel) == ((WEATHER_TOOL,), "weather", False)


@pytest.mark.parametrize(
    ("more", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"response_format": {"type": "json_object", "schema": {"a": "é"}}}, Grammar("json_schema", '{"a": "é"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            Grammar("json_schema", '{"type": "object"}'),
        ),
        ({"guided_json": '{"type":"array"}'}, Grammar("json_schema", '{"type": "array"}')),
        ({"guided_json": {"type": "array"}}, Grammar("json_schema", '{"type": "array"}')),
        ({"guided_regex": "a+"}, Grammar("regex", "a+")),
        ({"guided_choice": ["yes.", "no"]}, Grammar("regex", r"yes\.|no")),
        ({"guided_grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"')),
        ({"guided_grammar": 'start: "a"'}, Grammar("lark", 'start: "a"')),
        ({"grammar": 'root ::= "a"'}, Grammar("gbnf", 'root ::= "a"')),
        ({"json_schema": {}}, Grammar("json_schema", "{}")),
        ({"structured_outputs": {"json": {}}}, Grammar("json_schema", "{}")),
        ({"structured_outputs": {"choice": ["a"]}}, Grammar("regex", "a")),
    ],
)
def test_grammars(more: dict[str, Any], grammar: Grammar | None) -> None:
    assert read(**more).grammar == grammar


@pytest.mark.parametrize(
    ("more", "thinking"),
    [
        ({"reasoning_effort": "high"}, Thinking(effort="high")),
        ({"reasoning_effort": "none"}, Thinking(False)),
        ({"enable_thinking": True, "thinking_budget": 100}, Thinking(True, budget_tokens=100)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, Thinking(False)),
        ({"thinking": {"type": "disabled"}}, Thinking(False)),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, Thinking(True, budget_tokens=9)),
        ({"reasoning": {"effort": "low", "max_tokens": 5}}, Thinking(effort="low", budget_tokens=5)),
        ({"thinking_budget_tokens": 0}, Thinking(False)),
        ({"thinking_token_budget": -1}, Thinking()),
    ],
)
def test_thinking(more: dict[str, Any], thinking: Thinking) -> None:
    asked = read(**more)
    assert asked.thinking == thinking and asked.template_variables == {}


def test_variables_and_beginnings() -> None:
    assert read(chat_template_kwargs={"a": [1], "enable_thinking": True}).template_variables == {"a": [1]}
    begun = [HELLO, {"role": "assistant", "content": "Once"}]
    assert read(messages=[HELLO, begun[1] | {"prefix": True}]).continues_last
    assert read(messages=begun, continue_final_message=True, add_generation_prompt=False).continues_last
    assert not read(messages=begun, add_generation_prompt=True).continues_last


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"messages": [HELLO | {"content": [{"type": "image_url"}]}]}, "a content of type 'image_url' cannot be read"),
        ({"tools": [{"type": "custom", "custom": {}}]}, "a tool of type 'custom' is not supported"),
        ({"tools": TOOLS, "tool_choice": "often"}, "a choice of tools 'often'"),
        ({"tool_choice": "required"}, "there is none: give tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "there is no tool 'x'"),
        ({"tools": TOOLS, "functions": [WEATHER]}, "the older form of tools"),
        ({"response_format": {"type": "xml"}}, "a response format of type 'xml'"),
        ({"guided_regex": "a", "guided_json": {}}, "guided_json and guided_regex both say"),
        ({"guided_json": "{"}, "guided_json is not JSON"),
        ({"guided_json": "1"}, "guided_json is a int"),
        ({"chat_template_kwargs": {"a": float("nan")}}, "chat_template_kwargs cannot be read as JSON"),
        ({"tools": [TOOLS[0] | {"function": {"name": "x", "parameters": {"\ud800": 1}}}]}, "cannot be read as JSON"),
        ({"continue_final_message": True}, "only an assistant's message"),
        ({"modalities": ["text", "audio"]}, "modalities with the value"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem, match=said) as caught:
        read(**more)
    assert caught.value.status == 400 and caught.value.param


def test_harmless() -> None:
    more = {"store": True, "metadata": {}, "user": "x", "modalities": ["text"], "verbosity": "medium", "audio": None}
    assert read(**more, prediction={"type": "content"}, prompt_cache_key="x", service_tier="flex") == read()


# The official client.

CALLING = Line(("Let me see.",), ("Hm", "m."), [("c1", "weather", ['{"a":', "1}"]), ("c2", "time", ["{}"])])


def create(server: Played, line: Line, **more: Any) -> Any:
    server.engine.line = line
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20) as client:
        asked: dict[str, Any] = {"model": "demo", "messages": [HELLO], **more}
        answer = client.chat.completions.create(**asked)
        return list(answer) if more.get("stream") else answer


def test_a_reply_with_thinking_and_calls(server: Played) -> None:
    answer = create(server, CALLING, tools=TOOLS)
    [choice] = answer.choices
    assert (choice.message.content, choice.message.reasoning_content) == ("Let me see.", "Hmm.")
    calls = [(call.id, call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls]
    assert calls == [("c1", "function", "weather", '{"a":1}'), ("c2", "function", "time", "{}")]
    assert choice.finish_reason == "tool_calls"
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_with_thinking_and_calls(server: Played) -> None:
    chunks = create(server, CALLING, tools=TOOLS, stream=True)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hmm."
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    parts = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [(part.index, part.id, part.function.name) for part in parts if part.id] == [
        (0, "c1", "weather"),
        (1, "c2", "time"),
    ]
    assert "".join(part.function.arguments for part in parts if part.index == 0) == '{"a":1}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_calls_in_the_older_form(server: Played) -> None:
    [choice] = create(server, Line(calls=[("c", "weather", ["{}"])]), functions=[WEATHER]).choices
    assert choice.finish_reason == "function_call" and choice.message.function_call.name == "weather"
    assert choice.message.content is None and choice.message.tool_calls is None
    chunks = create(server, Line(calls=[("c", "weather", ["{", "}"])]), functions=[WEATHER], stream=True)
    parts = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert parts[0].name == "weather" and "".join(part.arguments for part in parts) == "{}"


def test_logprobs_come_whatever_the_tokens_belong_to(server: Played) -> None:
    [choice] = create(server, CALLING, tools=TOOLS, logprobs=True, top_logprobs=2).choices
    assert len(choice.logprobs.content) == 8 and choice.logprobs.content[0].token == "A"


def test_a_template_that_fails_is_the_request_s(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("the model's chat template fails: x")

    monkeypatch.setattr(server.engine, "chat_prompt", fail)
    with pytest.raises(openai.BadRequestError, match="template fails"):
        create(server, Line())


def test_long_prompts_of_numbers_do_not_hold_up_the_loop(server: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, plain = list[str](), completions._prompts

    def prompts(*given: Any) -> tuple[TextAsk, ...]:
        threads.append(threading.current_thread().name)
        return plain(*given)

    monkeypatch.setattr(completions, "_prompts", prompts)
    assert server.post("/v1/completions", {"prompt": [1, 2]})[0] == 200
    assert threads[0].startswith("tpi-work")
