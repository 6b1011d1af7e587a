"""Anthropic's API: what requests come down to, and what the official client gets."""

from typing import Any

import anthropic
import pytest

from tests.unit.api.scripted import Line, Played, played
from tpi.api.anthropic.asks import read_messages
from tpi.api.anthropic.schema import PromptFields
from tpi.api.errors import Problem
from tpi.api.guards import Rules
from tpi.api.keys import Key
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall
from tpi.errors import BusyError, LinkError

HELLO: Any = {"role": "user", "content": "Hello"}
TOOL: Any = {"name": "weather", "description": "x", "input_schema": {"type": "object"}, "cache_control": {}}
CALLING = Line(("See", "ing."), ("Hm", "m."), [("c1", "weather", ['{"a":', "1}"]), ("c2", "weather", ["{}"])])


def read(**more: Any) -> ChatAsk:
    return read_messages(PromptFields.model_validate({"messages": [HELLO]} | more))


def test_messages() -> None:
    said = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "c1", "name": "weather", "input": {"a": "é"}},
    ]
    heard = [
        {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "warm"}]},
        {"type": "tool_result", "tool_use_id": "c2", "content": "cold", "is_error": True},
        {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
    ]
    given = [HELLO, {"role": "assistant", "content": said}, {"role": "user", "content": heard}]
    asked = read(messages=given, system=[{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}])
    assert asked.messages == (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("assistant", "Let me see.", "hm", (ToolCall("c1", "weather", '{"a": "é"}'),)),
        Message("tool", "warm", tool_call_id="c1"),
        Message("tool", "Error: cold", tool_call_id="c2"),
        Message("user", "And?"),
    )
    assert not asked.continues_last
    assert read(messages=[HELLO, {"role": "assistant", "content": "Once"}]).continues_last


def test_tools_thinking_formats() -> None:
    choice = {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}
    asked = read(tools=[TOOL], tool_choice=choice, thinking={"type": "enabled", "budget_tokens": 2000})
    assert asked.tools == (Tool("weather", "x", {"type": "object"}),)
    assert (asked.tool_choice, asked.tool_name, asked.calls_in_parallel) == ("required", "weather", False)
    assert asked.thinking == Thinking(True, budget_tokens=2000)
    assert read(tools=[TOOL], tool_choice={"type": "any"}).tool_choice == "required"
    assert read(tools=[TOOL], tool_choice={"type": "none"}).tool_choice == "none"
    assert read(thinking={"type": "disabled"}).thinking == Thinking(False)
    config = {"effort": "low", "format": {"type": "json_schema", "schema": {"a": 1}}}
    asked = read(thinking={"type": "adaptive"}, output_config=config)
    assert asked.thinking == Thinking(effort="low") and asked.grammar == Grammar("json_schema", '{"a": 1}')


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"messages": [HELLO | {"content": [{"type": "image"}]}]}, "a content of type 'image'"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "a tool of type 'bash_20250124'"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}}, "there is no tool 'x', but weather"),
        ({"tool_choice": {"type": "any"}}, "there is none: give tools"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "xml"}}}, "a format of type 'xml'"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem, match=said):
        read(**more)


def client(server: Played, key: str = "none") -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0, timeout=20)


def create(server: Played, line: Line, **more: Any) -> Any:
    server.engine.line = line
    with client(server) as asker:
        answer: Any = asker.messages.create(model="demo", max_tokens=20, messages=[HELLO], **more)
        return list(answer) if more.get("stream") else answer


def test_a_message(server: Played) -> None:
    told = create(server, CALLING, tools=[TOOL])
    assert [block.type for block in told.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (told.content[0].thinking, told.content[1].text) == ("Hmm.", "Seeing.")
    assert (told.content[2].id, told.content[2].name, told.content[2].input) == ("c1", "weather", {"a": 1})
    assert told.stop_reason == "tool_use" and told.role == "assistant"
    assert (told.usage.input_tokens, told.usage.cache_read_input_tokens, told.usage.output_tokens) == (4, 3, 9)


def test_why_it_stopped(server: Played) -> None:
    assert create(server, Line(("a",))).stop_reason == "end_turn"
    told = create(server, Line(("a",), stopped_by="zzz"), stop_sequences=["zzz"])
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", "zzz")
    assert create(server, Line(("a",), stopped_by="\nUser:"), stop_sequences=["zzz"]).stop_reason == "end_turn"
    assert create(server, Line(["a"] * 20, finish="length")).stop_reason == "max_tokens"
    assert create(server, Line(["a"] * 19, finish="length")).stop_reason == "model_context_window_exceeded"


def test_a_stream(server: Played) -> None:
    events = create(server, CALLING, tools=[TOOL], stream=True)
    block = ["content_block_start", "content_block_delta", "content_block_delta", "content_block_stop"]
    # Pings are for the line; the client keeps them to itself.
    kinds = [event.type for event in events if event.type != "ping"]
    last = [*block[:2], "content_block_stop", "message_delta", "message_stop"]
    assert kinds == ["message_start", *block * 3, *last]
    assert [event.index for event in events if event.type == "content_block_start"] == [0, 1, 2, 3]
    begun = events[0].message.usage
    assert (begun.input_tokens, begun.output_tokens) == (7, 0) and events[-2].usage.output_tokens == 9


def test_the_client_puts_a_stream_together(server: Played) -> None:
    server.engine.line = CALLING
    with client(server) as asker, asker.messages.stream(model="demo", max_tokens=20, messages=[HELLO]) as stream:
        assert "".join(stream.text_stream) == "Seeing."
        told: Any = stream.get_final_message()
    assert [block.type for block in told.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert told.content[2].input == {"a": 1} and told.stop_reason == "tool_use"


def test_tokens_are_counted_and_models_listed(server: Played) -> None:
    with client(server) as asker:
        assert asker.messages.count_tokens(model="demo", messages=[HELLO]).input_tokens == 7
        [model] = asker.models.list()
        assert (model.id, model.type, model.display_name) == ("demo", "model", "demo")
        assert asker.models.retrieve("demo").created_at == model.created_at


def test_errors(server: Played) -> None:
    with client(server) as asker:
        with pytest.raises(anthropic.NotFoundError) as caught:
            asker.messages.create(model="x", max_tokens=1, messages=[HELLO])
        body: Any = caught.value.body
        assert body["type"] == "error" and body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
            asker.messages.create(model="demo", max_tokens=0, messages=[HELLO])
    with pytest.raises(anthropic.RateLimitError, match="too many"):
        create(server, Line(error=BusyError("too many")))
    with pytest.raises(anthropic.APIStatusError, match="w1 is gone"):
        create(server, Line(("Once",), error=LinkError("w1 is gone")), stream=True)


def test_a_key_by_its_own_name() -> None:
    with played(Rules("127.0.0.1", (Key("one", "secret"),))) as keyed:
        with client(keyed, "secret") as asker:
            assert asker.models.list().data
        with pytest.raises(anthropic.AuthenticationError, match="wants an API key"), client(keyed, "wrong") as asker:
            asker.messages.create(model="demo", max_tokens=1, messages=[HELLO])
