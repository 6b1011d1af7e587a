"""What a family's template writes is read back, however it is cut into pieces; and what is no call is content."""

# ruff: noqa: E501
import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.engine.dialects.families import FAMILIES, NONE, Family
from tpi.engine.chat import ChatTemplate
from tpi.engine.dialects.dialect import Dialect
from tpi.engine.dialects.reader import DialectReader
from tpi.engine.dialects.registry import GENERIC, find_dialect
from tpi.engine.generation import Answer, Delta
from tpi.engine.reading import Reply, ReplyBuilder
from tpi.engine.templateinput import TemplateInput
from tpi.engine.turns import Message, Tool, ToolCall

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "more": {"type": "object"}},
}
TOOLS = (Tool("get_weather", "Tells it.", SCHEMA), Tool("now", "", SCHEMA))
CITIES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=12).map(
    str.strip
)
NESTED = {"a": [1, {"b": '}\\"'}], "c": None}
ARGUMENTS = st.fixed_dictionaries(
    {}, optional={"city": CITIES.filter(bool), "days": st.integers(-9, 99), "more": st.just(NESTED)}
)


def read(dialect: Dialect, pieces: Sequence[str], tools: Sequence[Tool] = TOOLS, *, thinks: bool = False) -> Reply:
    reader = DialectReader(dialect, tools, starts_thinking=thinks, make_id=lambda _: "id")
    builder = ReplyBuilder(reader)
    for number, piece in enumerate(pieces):
        builder.push(Delta(piece, number + 1))
    builder.end()
    return builder.reply(Answer(finish="stop"))


def cut(text: str, seed: int) -> list[str]:
    generator, pieces = random.Random(seed), list[str]()
    while text:
        length = generator.choice((1, 1, 2, 3, 7, 20))
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def dialect_of(family: Family) -> Dialect:
    return find_dialect(family.template, lambda _: False)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=15)
@given(
    calls=st.lists(st.tuples(st.sampled_from(["get_weather", "now"]), ARGUMENTS), max_size=3),
    content=st.sampled_from(["", "Let me see.", "Two\n\nlines < of [it]."]),
    reasoning=st.sampled_from(["", "Hm.", "First\nthis, then {that}."]),
    seed=st.integers(0, 999),
)
def test_what_is_written_is_read_back(
    name: str, calls: list[tuple[str, Any]], content: str, reasoning: str, seed: int
) -> None:
    family = FAMILIES[name]
    reasoning = reasoning if family.thinks else ""
    calls = calls if family.calls_many else calls[:1]
    content = content if family.says_with_calls or not calls else ""
    made = tuple(
        ToolCall(f"functions.{tool}:0", tool, json.dumps(values, ensure_ascii=False)) for tool, values in calls
    )
    template = ChatTemplate(family.template)
    chat = [Message("user", "Hi"), Message("assistant", content, reasoning, made)]
    asked = TemplateInput(chat, TOOLS, add_generation_prompt=False)
    whole = "".join(segment.text for segment in template.render(asked, lambda _: False))
    written = whole.rpartition("<assistant>")[2].removesuffix("<end>")
    reply = read(dialect_of(family), cut(written, seed))
    assert reply.content == content and reply.reasoning == reasoning
    assert [(call.name, json.loads(call.arguments)) for call in reply.tool_calls] == calls
    assert reply.finish == ("tool_calls" if calls else "stop")


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_cut_gives_the_same_and_nothing_is_lost(name: str, data: st.DataObject) -> None:
    dialect = dialect_of(FAMILIES[name])
    marks = [*dialect.marks, *dialect.calls.marks]
    texts = [
        '{"name": "now"',
        ", ",
        "{",
        "}",
        '"',
        '"arguments": {"a": 1}',
        '"parameters": ',
        "[",
        "]",
        "now",
        "\n",
        " ",
        "x<",
    ]
    parts = st.sampled_from([*marks, *(mark[: len(mark) // 2] for mark in marks), *texts])
    text = "".join(data.draw(st.lists(parts, max_size=12)))
    whole = read(dialect, [text])
    for seed in range(4):
        again = read(dialect, cut(text, seed))
        assert (again.content, again.reasoning, again.tool_calls) == (whole.content, whole.reasoning, whole.tool_calls)
    if not any(mark in text for mark in marks) and not dialect.is_harmony:
        assert whole.content.strip() == text.strip() or whole.tool_calls


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('so <tool_call> {"name" x', 'so <tool_call> {"name" x', []),
        ("so <tool_call>\nnothing</tool_call> more", "so <tool_call>\nnothing</tool_call> more", []),
        ('<tool_call>{"name":"now","arguments":{"a": [1,', "", [("now", '{"a": [1,')]),
        ('<tool_call>{"arguments": {"a": 1}, "name": "now"}</tool_call>', "", [("now", '{"a": 1}')]),
        ('<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("now", '{"a": 1}')]),
        ('<tool_call>{"name": "now"}</tool_call> done', "done", [("now", "{}")]),
        ("a <tool_c", "a <tool_c", []),
    ],
)
def test_calls_as_models_write_them(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    for seed in range(5):
        reply = read(GENERIC, cut(text, seed))
        assert reply.content == content
        assert [(call.name, call.arguments) for call in reply.tool_calls] == calls


@pytest.mark.parametrize(
    ("name", "text", "calls"),
    [
        ("qwen xml", "<tool_call><function=now>\n<parameter=a>True</parameter>\n</function></tool_call>", ['{"a": true}']),
        ("gemma", "<|tool_call>call:now{a:[None, {b c:<|\"|>x, }<|\"|>}],d:-1.5}<tool_call|>", ['{"a": [null, {"b c": "x, }"}], "d": -1.5}']),
        ("gemma", "<|tool_call>call:now{}<tool_call|><|tool_call>call:now{a:b", ["{}", ""]),
        ("lfm", "<|tool_call_start|>[now(a='it\\'s', b = {'c': [None, 1e3]}), now()]<|tool_call_end|>", ['{"a": "it\'s", "b": {"c": [null, 1000.0]}}', "{}"]),
        ("lfm", "<|tool_call_start|>[now(a=open('x'))]<|tool_call_end|>", [""]),
        ("llama 4", '[now(a="b")]', ['{"a": "b"}']),
        ("llama 4", "[1] is a number, [elsewhere(a=1)] no tool", []),
        ("kimi", "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|> {}<|tool_call_end|><|tool_calls_section_end|>", ["{}"]),
        ("minimax", '<minimax:tool_call><invoke name="now"><parameter name="a">[1]</parameter></invoke></minimax:tool_call>', ['{"a": [1]}']),
        ("dsml", '<｜DSML｜function_calls><｜DSML｜invoke name="now"><｜DSML｜parameter name="a" string="true">1</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>', ['{"a": "1"}']),
        ("phi", 'functools[{"name": "now", "arguments": {}}]', ["{}"]),
        ("old command", 'Action: ```json\n[{"tool_name": "now", "parameters": {}}]\n```', ["{}"]),
        ("granite", '<think>Hm</think><response>So</response><|tool_call|>[{"name": "now", "arguments": {}}]', ["{}"]),
    ],
)  # fmt: skip
def test_calls_of_families_as_models_write_them(name: str, text: str, calls: list[str]) -> None:
    """Words of Python's, values in values, what is cut off, and what is no call."""
    for seed in range(5):
        reply = read(dialect_of(FAMILIES[name]), cut(text, seed))
        assert [call.name for call in reply.tool_calls] == ["now"] * len(calls)
        assert [call.arguments for call in reply.tool_calls] == calls
        assert bool(reply.tool_calls) or reply.content == text


def test_a_call_of_kimi_is_named_by_the_model() -> None:
    text = (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    )
    [call] = read(dialect_of(FAMILIES["kimi"]), [text]).tool_calls
    assert call.id == "functions.now:3"


def test_tags_around_words_are_no_words() -> None:
    dialect = find_dialect(FAMILIES["granite"].template + "<response></response>", lambda _: False)
    reply = read(dialect, cut("<think>Hm</think><response>So </response>", 1))
    assert (reply.reasoning, reply.content.strip()) == ("Hm", "So")


def test_arguments_come_as_they_are_written() -> None:
    reader = DialectReader(GENERIC, TOOLS, make_id=lambda _: "id")
    told = [
        reader.push(Delta(piece, 1)) for piece in ('<tool_call>{"name": "now", "argu', 'ments": {"a": ', '"b"', "}")
    ]
    assert [[(call.name, call.arguments) for call in delta.tool_calls] for delta in told] == [
        [], [("now", '{"a": ')], [("", '"b"')], [("", "}")],
    ]  # fmt: skip


def test_without_tools_a_call_is_content() -> None:
    text = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert read(GENERIC, [text], ()).content == text


def test_thinking_that_the_prompt_has_opened() -> None:
    dialect = find_dialect(NONE + "</think>", lambda _: False)
    reply = read(dialect, ["Hm", ".\n</th", "ink>\n\nSo", " <think>."], (), thinks=True)
    assert (reply.reasoning, reply.content, reply.n_reasoning_tokens) == ("Hm.", "So <think>.", 3)
