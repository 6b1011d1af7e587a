"""OpenAI's responses: what requests come down to, what the official client gets, what is kept."""

from typing import Any

import openai
import pytest

from tests.unit.api.scripted import Line, Played
from tpi.api.errors import Problem
from tpi.api.openai.responses.items import read_response
from tpi.api.openai.responses.schema import ResponseRequest
from tpi.api.openai.responses.store import Kept, ResponseStore
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall
from tpi.errors import LinkError

TOOL = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
CALLING = Line(("See", "ing."), ("Hm", "m."), [("c1", "weather", ['{"a":', "1}"]), ("c2", "weather", ["{}"])])


def read(**more: Any) -> ChatAsk:
    return read_response(ResponseRequest.model_validate({"input": "Hi"} | more), ())


def test_items_are_messages() -> None:
    given = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Well"}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "warm"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "cold"}]},
    ]
    calls = (ToolCall("c1", "weather", "{}"), ToolCall("c2", "weather", "{}"))
    assert read(input=given, instructions="Be brief.").messages == (
        Message("system", "Be brief."),
        Message("system", "Be kind."),
        Message("user", "Hi"),
        Message("assistant", "Well", "hm", calls),
        Message("tool", "warm", tool_call_id="c1"),
        Message("tool", "cold", tool_call_id="c2"),
    )


def test_what_else_is_asked() -> None:
    asked = read(
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        text={"format": {"type": "json_schema", "name": "x", "schema": {"a": 1}}},
        reasoning={"effort": "low"},
        parallel_tool_calls=False,
    )
    assert asked.tools == (Tool("weather", "Tells it.", {"type": "object"}),)
    assert (asked.tool_choice, asked.tool_name, asked.calls_in_parallel) == ("required", "weather", False)
    assert asked.grammar == Grammar("json_schema", '{"a": 1}') and asked.thinking == Thinking(effort="low")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"input": ""}, "there is no input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "an item of type 'item_reference'"),
        ({"input": [{"type": "function_call"}]}, "calls no function"),
        ({"tools": [{"type": "web_search"}]}, "a tool of type 'web_search'"),
        ({"text": {"verbosity": "low"}}, "verbosity"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(Problem, match=said):
        read(**more)


def client(server: Played) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=20)


def test_a_response(server: Played) -> None:
    server.engine.line = CALLING
    with client(server) as asker:
        told = asker.responses.create(model="demo", input="Hi", tools=[TOOL])  # type: ignore[list-item]
    assert told.status == "completed" and told.output_text == "Seeing." and told.object == "response"
    items: Any = told.output
    assert [item.type for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert items[0].content[0].text == "Hmm."
    assert (items[2].call_id, items[2].name, items[2].arguments) == ("c1", "weather", '{"a":1}')
    assert told.usage is not None and told.usage.input_tokens_details.cached_tokens == 3
    assert told.usage.output_tokens_details.reasoning_tokens == 2


def test_a_stream_tells_the_same_in_order(server: Played) -> None:
    server.engine.line = CALLING
    with client(server) as asker:
        stream = asker.responses.create(model="demo", input="Hi", stream=True, include=["message.output_text.logprobs"])
        events: list[Any] = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    of_message = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    of_call = [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    assert [event.type.removeprefix("response.") for event in events] == [
        "created", "in_progress",
        *of_message[0], *["reasoning_text.delta"] * 2, "reasoning_text.done", *of_message[1],
        *of_message[0], *["output_text.delta"] * 2, "output_text.done", *of_message[1],
        *of_call[:2], "function_call_arguments.delta", *of_call[2:], *of_call,
        "completed",
    ]  # fmt: skip
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.output and len(done) == 4
    assert done[1].content[0].logprobs[0].token == "A"
    places = [event.output_index for event in events if hasattr(event, "output_index")]
    assert places == sorted(places)


def test_one_that_is_cut_and_one_that_fails(server: Played) -> None:
    with client(server) as asker:
        server.engine.line = Line(("Once",), finish="length")
        cut = asker.responses.create(model="demo", input="Hi", max_output_tokens=1)
        assert cut.status == "incomplete" and cut.incomplete_details is not None
        assert cut.incomplete_details.reason == "max_output_tokens"
        assert [item.status for item in cut.output] == ["incomplete"]  # type: ignore[union-attr]
        server.engine.line = Line(("Once",), error=LinkError("w1 is gone"))
        last = list(asker.responses.create(model="demo", input="Hi", stream=True))[-1]
        assert last.type == "response.failed" and last.response.error is not None
        assert last.response.error.message == "w1 is gone"
        with pytest.raises(openai.InternalServerError, match="w1 is gone"):
            asker.responses.create(model="demo", input="Hi")


@pytest.mark.parametrize("is_streamed", [False, True])
def test_going_on_from_one_that_is_kept(server: Played, is_streamed: bool) -> None:
    server.engine.line = CALLING
    with client(server) as asker:
        if is_streamed:
            events: list[Any] = list(asker.responses.create(model="demo", input="Hi", instructions="A", stream=True))
            first = events[-1].response
        else:
            first = asker.responses.create(model="demo", input="Hi", instructions="A")
        assert asker.responses.retrieve(first.id).output == first.output
        result: Any = {"type": "function_call_output", "call_id": "c1", "output": "warm"}
        server.engine.line = Line(("Warm.",))
        asker.responses.create(
            model="demo", input=[result], previous_response_id=first.id, instructions="B", store=False
        )
        calls = (ToolCall("c1", "weather", '{"a":1}'), ToolCall("c2", "weather", "{}"))
        assert server.ask.messages == (
            Message("system", "B"),
            Message("user", "Hi"),
            Message("assistant", "Seeing.", "Hmm.", calls),
            Message("tool", "warm", tool_call_id="c1"),
        )
        asker.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            asker.responses.retrieve(first.id)
        with pytest.raises(openai.BadRequestError, match="there is no response"):
            asker.responses.create(model="demo", input="And?", previous_response_id=first.id)


def test_what_a_response_was_made_of_is_listed(server: Played) -> None:
    server.engine.line = CALLING
    result: Any = {"type": "function_call_output", "call_id": "c1", "output": "warm"}
    with client(server) as asker:
        first = asker.responses.create(model="demo", input="Hi", instructions="A")
        second = asker.responses.create(model="demo", input=[result], previous_response_id=first.id)
        items: list[Any] = list(asker.responses.input_items.list(second.id, order="asc"))
        kinds = ["message", "reasoning", "message", "function_call", "function_call", "function_call_output"]
        assert [item.type for item in items] == kinds
        assert (items[0].role, items[0].content[0].text) == ("user", "Hi")
        assert items[1].content[0].text == "Hmm." and items[2].content[0].type == "output_text"
        assert (items[3].call_id, items[3].arguments, items[5].output) == ("c1", '{"a":1}', "warm")
        pages = asker.responses.input_items.list(second.id, limit=4)
        assert [item.id for item in pages.data] == [item.id for item in reversed(items)][:4] and pages.has_more
        assert [item.id for item in pages] == [item.id for item in reversed(items)], "page after page"
        last = asker.responses.input_items.list(second.id, order="asc", after=items[3].id)
        assert [item.id for item in last.data] == [item.id for item in items[4:]] and not last.has_more
        assert asker.responses.input_items.list(second.id, order="asc", after=items[-1].id).data == []
        with pytest.raises(openai.NotFoundError, match="has no item 'x'"):
            asker.responses.input_items.list(second.id, after="x")
        with pytest.raises(openai.NotFoundError, match="there is no response"):
            asker.responses.input_items.list("x")
        with pytest.raises(openai.BadRequestError, match="limit"):
            asker.responses.input_items.list(second.id, limit=101)
        assert read(input=[item.model_dump() for item in items]).messages == (
            *read_response(ResponseRequest(input="Hi"), ()).messages,
            Message("assistant", "Seeing.", "Hmm.", items_calls()),
            Message("tool", "warm", tool_call_id="c1"),
        )


def items_calls() -> tuple[ToolCall, ...]:
    return ToolCall("c1", "weather", '{"a":1}'), ToolCall("c2", "weather", "{}")


def test_the_store_is_bounded() -> None:
    store = ResponseStore(max_kept=3, max_bytes=1000)
    for name in "abc":
        store.keep(Kept({"id": name}, ()))
    assert store.find("a")
    store.keep(Kept({"id": "d"}, ()))
    assert [bool(store.find(name)) for name in "abcd"] == [True, False, True, True]
    store.keep(Kept({"id": "e"}, (Message("user", "x" * 975),)))
    assert [bool(store.find(name)) for name in "acde"] == [False, False, True, True]
    assert Kept({"id": "f"}, (Message("user", "ü" * 500),)).n_bytes > 1000
    store.keep(Kept({"id": "f"}, (Message("user", "ü" * 500),)))
    assert store.find("f") is None and store.find("e")
