"""What a chat asks, as prompt, reader and form: tools, thinking, beginnings of answers; users' words stay words."""

import functools
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.unit.api.scripted import DEMO
from tests.unit.engine.dialects.families import FAMILIES, HERMES, NONE
from tpi.engine.chat import ChatTemplate
from tpi.engine.chatprompt import ChatPrompts, Prompt
from tpi.engine.constraint import Constraint
from tpi.engine.detokenizer import Detokenizer
from tpi.engine.generation import Answer, Delta
from tpi.engine.reading import Reply, ReplyBuilder
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import UsageError

THINKING = NONE.replace("<assistant>", "<assistant><think>\n{% if enable_thinking is false %}</think>\n{% endif %}")
USER = Message("user", "Hi")
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Rome"], "description": "Of <|end|>."}},
    "required": ["city"],
}
ODD: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "zzz"}, "y": {"type": "string"}},
    "required": ["x"],
}
DEEP: dict[str, Any] = functools.reduce(lambda inner, _: {"a": inner}, range(450), {"a": 1})
TOOL = Tool("get_weather", "Tells <|end|> it.", SCHEMA)


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with Vocabulary(DEMO) as opened:
        yield opened


def prompts(vocabulary: Vocabulary, template: str) -> ChatPrompts:
    return ChatPrompts(vocabulary, ChatTemplate(template))


def text_of(vocabulary: Vocabulary, prompt: Prompt) -> str:
    return b"".join(vocabulary.token_bytes(token, special=True) for token in prompt.tokens).decode()


def specials(vocabulary: Vocabulary, prompt: Prompt) -> int:
    return sum(map(vocabulary.is_special, prompt.tokens))


def answer(vocabulary: Vocabulary, prompt: Prompt, wishes: str, n_most: int = 200, *, has_ends: bool = True) -> Reply:
    """What comes of a model that would write ``wishes``, as far as the form lets it; then it takes what it may. It
    ``has_ends``: some tokens end its answer."""
    constraint: Constraint | None = prompt.make_constraint()
    wanted = vocabulary.tokenize(wishes, add_special=False, parse_special=True)
    builder, generator = ReplyBuilder(prompt.make_reader()), np.random.default_rng(1)
    decoder, n = Detokenizer(), 0
    while n < n_most:
        mask = constraint.mask() if constraint is not None else None
        if mask is None and not wanted:
            break
        if wanted and (mask is None or mask[wanted[0]]):
            token = wanted.pop(0)
        else:
            assert mask is not None
            token = int(generator.choice(np.flatnonzero(mask)))
        if has_ends and vocabulary.is_end_of_generation(token):
            break
        n += 1
        builder.push(Delta(decoder.push(vocabulary.token_bytes(token, special=token in prompt.shown)), n))
        if constraint is not None:
            constraint.accept(token)
            if constraint.is_complete:
                break
    builder.end()
    return builder.reply(Answer(finish="stop"))


@pytest.mark.parametrize("name", [*FAMILIES, "none"])
def test_users_words_in_tools_and_results_stay_words(vocabulary: Vocabulary, name: str) -> None:
    template = FAMILIES[name].template if name in FAMILIES else NONE
    made = prompts(vocabulary, template)
    mark = "<|end|>"
    counts = []
    for evil in ("", mark):
        tool = Tool("now", f"a{evil} b", {"type": "object", "properties": {"c": {"description": f"d {evil}"}}})
        call = ToolCall("id1", "now", json.dumps({"c": f'e"{evil}'}))
        chat = (USER, Message("assistant", "", f"Hm{evil}.", (call,)), Message("tool", f"f {evil}", tool_call_id="id1"))
        prompt = made.chat(ChatAsk((*chat, USER), (tool,)))
        counts.append(specials(vocabulary, prompt))
        assert f"f {evil}".strip() in text_of(vocabulary, prompt)
    assert counts[0] == counts[1]


def test_words_that_the_template_reads_are_refused(vocabulary: Vocabulary) -> None:
    made = prompts(vocabulary, HERMES)
    with pytest.raises(UsageError, match="special"):
        made.chat(ChatAsk((USER,), (Tool("now", "", {"properties": {"<|end|>": {}}}),)))
    with pytest.raises(UsageError, match="special"):
        made.chat(ChatAsk((USER,), template_variables={"mood": "<|end|>"}))
    with pytest.raises(UsageError, match="cannot be set"):
        made.chat(ChatAsk((USER,), template_variables={"messages": []}))


def test_tools_that_the_template_does_not_know(vocabulary: Vocabulary) -> None:
    made = prompts(vocabulary, NONE)
    call = ToolCall("x", "get_weather", '{"city": "Rome"}')
    chat = (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "18", tool_call_id="x"))
    text = text_of(vocabulary, made.chat(ChatAsk(chat, (TOOL,))))
    assert '"get_weather"' in text and "<tool_response>\n18\n</tool_response>" in text
    assert '{"name": "get_weather", "arguments": {"city": "Rome"}}' in text


def test_a_template_that_writes_calls_and_tells_of_no_tools(vocabulary: Vocabulary) -> None:
    """Its own form is told in words; one that wants calls without content, and arguments as text, gets them so."""
    plain = FAMILIES["deepseek"].template.replace("{{ t | tojson }}", "")
    picky = plain.replace("m.tool_calls %}<｜tool▁calls", "m.tool_calls and m.content is none %}<｜tool▁calls")
    assert picky != plain
    call = ToolCall("x", "get_weather", '{"city": "Rome"}')
    chat = (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "18", tool_call_id="x"))
    for template in (plain, picky):
        made = prompts(vocabulary, template)
        text = text_of(vocabulary, made.chat(ChatAsk(chat, (TOOL,))))
        assert '"get_weather"' in text and "function<｜tool▁sep｜>NAME\n```json\n{…}\n```" in text
        assert 'function<｜tool▁sep｜>get_weather\n```json\n{"city": "Rome"}\n```' in text
        prompt = made.chat(ChatAsk((USER,), (TOOL,), "required", calls_in_parallel=False))
        assert answer(vocabulary, prompt, "no").tool_calls[0].name == "get_weather"


def test_another_template_for_chats_with_tools(vocabulary: Vocabulary) -> None:
    made = ChatPrompts(vocabulary, ChatTemplate(NONE), ChatTemplate("T" + FAMILIES["glm"].template))
    assert text_of(vocabulary, made.chat(ChatAsk((USER,)))).startswith("<|bos|><user>")
    prompt = made.chat(ChatAsk((USER,), (TOOL,)))
    assert text_of(vocabulary, prompt).startswith("<|bos|>T<sys>")
    beginning = made.beginning((USER,), ChatAsk((USER,), (TOOL,)))
    assert beginning == list(prompt.tokens[: len(beginning)]) and len(beginning) > 9
    wish = '<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>"Rome"</arg_value>\n</tool_call>'
    assert answer(vocabulary, prompt, wish).tool_calls[0].arguments == '{"city": "Rome"}'


def test_variables_under_other_names(vocabulary: Vocabulary) -> None:
    """Tools as SmolLM 3 has them, a budget as Seed has it."""
    named = "{{ xml_tools | tojson if xml_tools }}{{ thinking_budget if thinking_budget is defined }}" + NONE
    made = prompts(vocabulary, named)
    call = ToolCall("x", "get_weather", '{"city": "Rome"}')
    chat = (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "18", tool_call_id="x"))
    plain = Tool("get_weather", "Tells it.", {"properties": {}})
    text = text_of(vocabulary, made.chat(ChatAsk(chat, (plain,), thinking=Thinking(budget_tokens=99))))
    assert text.removeprefix("<|bos|>").startswith(
        '[{"name": "get_weather", "description": "Tells it.", "parameters": {"properties": {}}}]99'
    )
    assert "You can call" not in text and '{"name": "get_weather", "arguments": {"city": "Rome"}}' in text
    assert text_of(vocabulary, made.chat(ChatAsk((USER,), thinking=Thinking(is_on=False)))).startswith("<|bos|>0<user>")
    assert text_of(vocabulary, made.chat(ChatAsk((USER,)))).startswith("<|bos|><user>")


def test_tools_that_stand_in_the_systems_message(vocabulary: Vocabulary) -> None:
    """As Phi 4 mini has them."""
    inside = NONE.replace(
        "<end>", "{% if 'tools' in m and m['tools'] is not none %}<|tool|>{{ m['tools'] }}<|/tool|>{% endif %}<end>"
    )
    made, evil = prompts(vocabulary, inside), Tool("now", "a <|end|> b")
    system = Message("system", "Be kind.")
    for front, words in (((), "You can call tools."), ((system,), "Be kind.")):
        prompt = made.chat(ChatAsk((*front, USER), (evil,), "required", calls_in_parallel=False))
        text = text_of(vocabulary, prompt)
        assert f'<system>{words}<|tool|>[{{"name": "now", "description": "a <|end|> b"' in text
        assert specials(vocabulary, prompt) == 1
        assert answer(vocabulary, prompt, 'functools[{"name"').tool_calls[0].name == "now"
    both = prompts(vocabulary, inside + "{{ tools | tojson if tools }}").chat(ChatAsk((system, USER), (evil,)))
    assert "<|tool|>" not in text_of(vocabulary, both)


def test_a_call_that_a_model_decides_on_follows_the_schema(vocabulary: Vocabulary) -> None:
    prompt = prompts(vocabulary, HERMES).chat(ChatAsk((USER,), (TOOL,), calls_in_parallel=False))
    reply = answer(vocabulary, prompt, 'Well.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}')
    assert reply.content == "Well."
    assert [(call.name, call.arguments) for call in reply.tool_calls] == [("get_weather", '{"city": "Rome"}')]
    assert answer(vocabulary, prompt, "No need.").content == "No need."


@pytest.mark.parametrize("name", ["hermes", "qwen xml"])
def test_a_schema_that_no_grammar_can_follow_is_followed_loosely(vocabulary: Vocabulary, name: str) -> None:
    ask = ChatAsk((USER,), (Tool("a", "", ODD),), "required", calls_in_parallel=False)
    prompt = prompts(vocabulary, FAMILIES[name].template).chat(ask)
    wish = {"hermes": '<tool_call>\n{"name": "a", "arguments": {"x": 12}}',
            "qwen xml": "<tool_call>\n<function=a>\n<parameter=x>\n12\n</parameter>\n</function>"}  # fmt: skip
    [call] = answer(vocabulary, prompt, wish[name]).tool_calls
    assert call.name == "a" and json.loads(call.arguments)["x"] == 12


STAY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Rome", "Oslo"]},
        "near": {"type": "boolean"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "who": {"type": "array", "items": {"type": "string", "enum": ["Ada", "Bo"]}, "maxItems": 2},
        "rooms": {"type": "object", "properties": {"beds": {"enum": [1, 2], "type": "integer"}}, "required": ["beds"]},
    },
    "required": ["near", "rooms"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_call_that_must_come_has_its_familys_form(vocabulary: Vocabulary, name: str) -> None:
    """As its template writes it, and whatever else a model would write: then one of those that the schema allows."""
    made, tool = prompts(vocabulary, FAMILIES[name].template), Tool("book", "", STAY)
    values = {"city": "Oslo", "near": True, "days": 3, "who": ["Bo"], "rooms": {"beds": 2}}
    chat = (USER, Message("assistant", "", tool_calls=(ToolCall("functions.book:0", "book", json.dumps(values)),)))
    written = text_of(vocabulary, made.chat(ChatAsk(chat, (tool,)))).rpartition("<assistant>")[0]
    wish = written.rpartition("<assistant>")[2].removesuffix("<end>").lstrip()
    if made.dialect.calls.begins_bare:
        wish = wish.removeprefix(made.dialect.calls.openers[0]).removesuffix("<|python_end|>")
    prompt = made.chat(ChatAsk((USER,), (tool,), "required", calls_in_parallel=False))
    for wishes in (wish, "No, I would not do that."):
        [call] = answer(vocabulary, prompt, wishes, 900).tool_calls
        found = json.loads(call.arguments)
        jsonschema.validate(found, STAY)
        assert call.name == "book" and (found == values or wishes != wish)


def test_texts_in_quotes_of_pythons(vocabulary: Vocabulary) -> None:
    tool = Tool("now", "", {"properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}, "required": ["a", "b"]})
    prompt = prompts(vocabulary, FAMILIES["lfm"].template).chat(ChatAsk((USER,), (tool,), calls_in_parallel=False))
    reply = answer(vocabulary, prompt, "So: <|tool_call_start|>[now(a='it', b=True)]<|tool_call_end|>")
    assert [call.arguments for call in reply.tool_calls] == ['{"a": "it", "b": true}']


def test_ids_that_a_template_does_not_take_are_made_short(vocabulary: Vocabulary) -> None:
    template = FAMILIES["mistral"].template.replace(
        "{% for c in m.tool_calls %}",
        ("{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"),
    )
    call = ToolCall("toolu_0123456789", "get_weather", '{"city": "Rome"}')
    chat = (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "18", tool_call_id=call.id))
    assert "18" in text_of(vocabulary, prompts(vocabulary, template).chat(ChatAsk(chat, (TOOL,))))


def test_a_grammar_begins_after_the_thinking(vocabulary: Vocabulary) -> None:
    ask = ChatAsk((USER,), grammar=Grammar("json_schema", json.dumps({"enum": ["yes", "no"]})))
    prompt = prompts(vocabulary, THINKING).chat(ask)
    reply = answer(vocabulary, prompt, 'It is {"so"}.\n</think>\n\n"no"')
    assert (reply.reasoning, reply.content) == ('It is {"so"}.', '"no"')
    assert 0 < reply.n_reasoning_tokens < 20


@pytest.mark.parametrize("budget", [0, 3, 8])
def test_a_budget_of_thinking(vocabulary: Vocabulary, budget: int) -> None:
    ask = ChatAsk((USER,), thinking=Thinking(budget_tokens=budget))
    prompt = prompts(vocabulary, THINKING).chat(ask)
    reply = answer(vocabulary, prompt, "one two three four five six seven eight nine ten and so on", 60)
    assert reply.content and (not reply.reasoning) == (not budget)
    thought = vocabulary.tokenize(reply.reasoning, add_special=False, parse_special=False)
    assert abs(len(thought) - budget) <= 2
    assert len(vocabulary.tokenize(reply.content, add_special=False, parse_special=False)) >= 5


@pytest.mark.parametrize("budget", [None, 0, 3, 8])
@pytest.mark.parametrize("more", [{"grammar": Grammar("json_schema", '{"enum": ["yes", "no"]}')}, {"tools": (TOOL,)}])
def test_a_budget_of_thinking_in_channels(vocabulary: Vocabulary, more: dict[str, Any], budget: int | None) -> None:
    """With a grammar, or a call that must come."""
    more |= {"tool_choice": "required"} if "tools" in more else {}
    ask = ChatAsk((USER,), thinking=Thinking(budget_tokens=budget), **more)
    prompt = prompts(vocabulary, FAMILIES["harmony"].template).chat(ask)
    begun = "" if budget == 0 else "<|channel|>analysis<|message|>"
    end = '<|channel|>final<|message|>"no"' if "grammar" in more else ""
    thinks = f"{begun}one two three four five six seven éé ten"
    wishes = f"{thinks}<|end|><|start|>assistant{end}" if budget is None else thinks
    reply = answer(vocabulary, prompt, wishes, 400, has_ends=False)
    if "grammar" in more:
        assert reply.content in ('"yes"', '"no"')
    else:
        assert [(call.name, call.arguments) for call in reply.tool_calls] == [("get_weather", '{"city": "Rome"}')]
    thought = vocabulary.tokenize(reply.reasoning, add_special=False, parse_special=False)
    if budget is None:
        assert reply.reasoning.endswith("ten")
    else:
        assert abs(len(thought) - budget) <= 2 and bool(thought) == bool(budget)


def test_thinking_that_is_not_wanted(vocabulary: Vocabulary) -> None:
    def end(template: str, thinking: Thinking) -> str:
        return text_of(vocabulary, prompts(vocabulary, template).chat(ChatAsk((USER,), thinking=thinking)))[-30:]

    assert end(THINKING, Thinking()).endswith("<think>\n")
    assert end(THINKING, Thinking(is_on=False)).endswith("<think>\n</think>\n")
    stubborn = NONE.replace("<assistant>", "<assistant><think>\n") + "{# </think> #}"
    assert end(stubborn, Thinking(is_on=False)).endswith("<think>\n\n</think>\n\n")


def test_an_answer_that_goes_on(vocabulary: Vocabulary) -> None:
    def end(template: str, last: Message) -> str:
        ask = ChatAsk((USER, last), continues_last=True)
        return text_of(vocabulary, prompts(vocabulary, template).chat(ask)).rpartition("<assistant>")[2]

    assert end(NONE, Message("assistant", "Once")) == "Once"
    assert end(THINKING, Message("assistant", "Once ")) == "Once "
    assert end(NONE.replace("m.content", "m.content | trim"), Message("assistant", " Once\n")) == "Once"
    assert end(HERMES, Message("assistant", "Once", "Hm")) == "<think>\nHm\n</think>\n\nOnce"
    stubborn = NONE + "{# </think> #}{% if not add_generation_prompt %}{{ raise_exception('no') }}{% endif %}"
    assert end(stubborn.replace("<assistant>", "<assistant><think>"), Message("assistant", "Once")).endswith(
        "<think>\n</think>\n\nOnce"
    )
    assert end(THINKING, Message("assistant", "", "Hm")) == "<think>\nHm"
    assert end(THINKING, Message("assistant", "Once", "Hm")) == "<think>\nHm\n</think>\n\nOnce"
    with pytest.raises(UsageError, match="gone on with"):
        end(NONE, USER)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"tool_choice": "required"}, "there is none"),
        ({"tools": (TOOL,), "tool_choice": "required", "tool_name": "other"}, "not among"),
        ({"tools": (TOOL, TOOL)}, "same name"),
        ({"tools": (Tool("a b"),)}, "letters"),
        ({"tools": (Tool("a", "", DEEP),), "tool_choice": "auto"}, "nested"),
        ({"template_variables": DEEP}, "nested"),
        ({"messages": (USER, Message("assistant", "", tool_calls=(ToolCall("", "a", json.dumps(DEEP)),)))}, "nested"),
        ({"tools": (Tool("a", "", ODD, is_strict=True),)}, "grammar"),
    ],
)
def test_what_cannot_be_asked(vocabulary: Vocabulary, more: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        prompts(vocabulary, HERMES).chat(ChatAsk(**{"messages": (USER,), **more}))
