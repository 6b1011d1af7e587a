"""The form of an answer, token by token, with marks that are special tokens of their own."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.unit.api.scripted import DEMO
from tpi.engine.answerform import AnswerForm, Form, start_form
from tpi.engine.dialects.dialect import Dialect, Tags
from tpi.engine.dialects.jsoncalls import JsonCalls
from tpi.engine.dialects.reader import DialectReader
from tpi.engine.generation import Delta
from tpi.engine.grammar import GrammarTokens, LarkRules
from tpi.engine.turns import Tool
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import ConstraintError

OPENER, CLOSER = "<|user|>", "<|assistant|>"
TAGS = Tags(OPENER, CLOSER)
GRAMMAR = '%llguidance {}\nstart: "fox" | "crow"'


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with Vocabulary(DEMO) as opened:
        yield opened


@pytest.fixture(scope="module")
def grammars(vocabulary: Vocabulary) -> GrammarTokens:
    return GrammarTokens(vocabulary)


def tokens(vocabulary: Vocabulary, text: str) -> list[int]:
    return vocabulary.tokenize(text, add_special=False, parse_special=True)


def write(form: AnswerForm, vocabulary: Vocabulary, text: str) -> None:
    for token in tokens(vocabulary, text):
        mask = form.mask()
        assert mask is None or mask[token], vocabulary.token_bytes(token, special=True)
        form.accept(token)


def allowed(form: AnswerForm) -> set[int]:
    mask = form.mask()
    assert mask is not None
    return set(np.flatnonzero(mask).tolist())


def test_nothing_is_demanded(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    assert start_form(Form(TAGS), grammars, vocabulary) is None


def test_a_model_may_think_before_a_grammar_or_not(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    [opener], [closer] = tokens(vocabulary, OPENER), tokens(vocabulary, CLOSER)
    form = AnswerForm(Form(TAGS, grammar=GRAMMAR), grammars, vocabulary)
    assert opener in allowed(form) and closer not in allowed(form)
    write(form, vocabulary, f"{OPENER}It is a bear, said Tom.")
    assert not any(map(vocabulary.is_end_of_generation, allowed(form)))
    write(form, vocabulary, CLOSER)
    assert opener not in allowed(form)
    write(form, vocabulary, "crow")
    assert form.is_complete
    other = AnswerForm(Form(TAGS, grammar=GRAMMAR), grammars, vocabulary)
    write(other, vocabulary, "f")
    assert opener not in allowed(other)
    with pytest.raises(ConstraintError):
        other.accept(opener)


def test_a_grammar_knows_nothing_of_the_end_of_a_budget(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    form = AnswerForm(Form(TAGS, starts_thinking=True, budget_tokens=2, grammar=GRAMMAR), grammars, vocabulary)
    write(form, vocabulary, "It is")
    for token in tokens(vocabulary, f"\n{CLOSER}\n\n"):
        assert allowed(form) == {token}
        form.accept(token)
    write(form, vocabulary, "fox")
    assert form.is_complete


def test_thinking_is_ended_after_its_budget(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    form = AnswerForm(Form(TAGS, starts_thinking=True, budget_tokens=2), grammars, vocabulary)
    for token in tokens(vocabulary, "one two")[:2]:
        assert form.mask() is None
        form.accept(token)
    forced = list[int]()
    while form.mask() is not None:
        [token] = allowed(form)
        forced.append(token)
        form.accept(token)
    assert forced == tokens(vocabulary, f"\n{CLOSER}\n\n")
    write(form, vocabulary, "And so on, for as long as it likes.")


def test_a_call_between_special_tokens(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    calls, rules = JsonCalls(OPENER, CLOSER, line="\n"), LarkRules(vocabulary)
    tools = (Tool("now"), Tool("lamp", "", {"type": "object", "properties": {"on": {"type": "boolean"}}}))
    form = AnswerForm(
        Form(calls={OPENER: rules.grammar(calls.rules(rules, tools, is_many=False))}), grammars, vocabulary
    )
    text = f'Well.\n{OPENER}\n{{"name": "lamp", "arguments": {{"on": true}}}}\n{CLOSER}'
    write(form, vocabulary, text)
    assert form.is_complete
    reader = DialectReader(Dialect(calls), tools, make_id=lambda _: "id")
    told = reader.push(Delta(text, 1))
    assert told.content == "Well." and [(c.name, c.arguments) for c in told.tool_calls] == [("lamp", '{"on": true}')]


def test_an_opener_in_several_tokens(vocabulary: Vocabulary, grammars: GrammarTokens) -> None:
    calls, rules = JsonCalls("<call>", "</call>"), LarkRules(vocabulary)
    form = AnswerForm(
        Form(calls={"<call>": rules.grammar(calls.rules(rules, (Tool("now"),), is_many=False))}), grammars, vocabulary
    )
    for token in tokens(vocabulary, "<call"):
        form.accept(token)
    mixed = next(t for t in range(vocabulary.n_tokens) if vocabulary.token_bytes(t) == b">")
    form.accept(mixed)
    [first] = allowed(form)
    assert vocabulary.token_bytes(first).startswith(b"{")
