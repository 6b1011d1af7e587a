"""Grammars on a real vocabulary: whatever is drawn at random from the masks is what was asked for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from tests.models import write_random_model
from tests.unit.api.scripted import DEMO
from tests.unit.engine.dialects.families import FAMILIES
from tests.unit.engine.dialects.test_dialects import dialect_of, read
from tpi.engine.grammar import GrammarTokens, LarkRules, body_of, lark_of
from tpi.engine.turns import Grammar, GrammarKind, Tool
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import UsageError


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    with Vocabulary(DEMO) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokens(vocabulary: Vocabulary) -> GrammarTokens:
    return GrammarTokens(vocabulary)


def draw(tokens: GrammarTokens, vocabulary: Vocabulary, lark: str, seed: int) -> str:
    """Ends where the grammar lets it; the better so, the more often."""
    matcher, generator, text = tokens.start(lark), np.random.default_rng(seed), b""
    for _ in range(2000):
        mask = matcher.mask()
        assert mask is not None and mask.shape == (vocabulary.n_tokens,) and mask.any()
        allowed = np.flatnonzero(mask)
        ends = [token for token in allowed.tolist() if vocabulary.is_end_of_generation(token)]
        token = ends[0] if ends and generator.random() < 0.3 else int(generator.choice(allowed))
        if token in ends:
            return text.decode()
        matcher.accept(token)
        text += vocabulary.token_bytes(token, special=True)
        if matcher.is_complete:
            return text.decode()
    raise AssertionError(f"it does not end: {text[:200]!r}")


SCHEMAS: dict[str, Any] = {
    "object": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"type": "integer", "minimum": 3, "maximum": 120},
            "kind": {"enum": ["fox", "crow", None]},
        },
        "required": ["name", "kind"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    "choice": {"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 1}, {"const": "none"}]},
    "pattern": {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$", "maxLength": 12},
    "tree": {
        "$defs": {"n": {"type": "object", "properties": {"l": {"$ref": "#/$defs/n"}}, "additionalProperties": False}},
        "$ref": "#/$defs/n",
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas(tokens: GrammarTokens, vocabulary: Vocabulary, name: str) -> None:
    for seed in range(8):
        rules = LarkRules(vocabulary)
        body = body_of(rules, Grammar("json_schema", json.dumps(SCHEMAS[name])))
        assert body is not None
        jsonschema.validate(json.loads(draw(tokens, vocabulary, rules.grammar(body), seed)), SCHEMAS[name])


def test_a_vocabulary_that_puts_a_space_before_texts(tmp_path: Path) -> None:
    """Words that a grammar demands go on where the text is: there is no space before them."""
    with Vocabulary(write_random_model(tmp_path / "model.gguf", n_vocab=400)) as vocabulary:
        assert vocabulary.adds_space_prefix
        tokens, rules = GrammarTokens(vocabulary), LarkRules(vocabulary)
        assert vocabulary.token_bytes(tokens.tokenize(b"{")[0]) == b"{"
        body = body_of(rules, Grammar("json_schema", json.dumps(SCHEMAS["object"])))
        assert body is not None
        for seed in range(4):
            drawn = json.loads(draw(tokens, vocabulary, rules.grammar(body), seed))
            jsonschema.validate(drawn, SCHEMAS["object"])


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", r"[a-c]{3}/\d+\n?", r"[a-c]{3}/\d+\n?"),
        ("lark", 'start: "a" x\nx: /[0-9]{1,3}/ | "b"', r"a([0-9]{1,3}|b)"),
        (
            "gbnf",
            'root ::= "yes\\n" | item{2,3} # either\nitem ::= [^a-z\\]"/\\x41-] ("b" |\n "c")? [0-9]{1,4}\n',
            r'yes\n|([^a-z\]"/A-][bc]?[0-9]{1,4}){2,3}',
        ),
        ("gbnf", 'root::=("\\u00e9\\""|[\\-+])+ wide-name\nwide-name ::= .', r'([é]"|[-+])+.'),
    ],
)
def test_other_grammars(
    tokens: GrammarTokens, vocabulary: Vocabulary, kind: GrammarKind, text: str, pattern: str
) -> None:
    for seed in range(8):
        drawn = draw(tokens, vocabulary, lark_of(Grammar(kind, text)), seed)
        assert re.fullmatch(pattern, drawn, re.DOTALL), drawn


TOOLS = (
    Tool("set_lamp", "", {
        "type": "object",
        "properties": {"room": {"type": "string", "enum": ["hall", "attic"]}, "level": {"type": "integer"}},
        "required": ["room"],
    }),
    Tool("now"),
)  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_are_read_back(tokens: GrammarTokens, vocabulary: Vocabulary, name: str) -> None:
    dialect, seen = dialect_of(FAMILIES[name]), set[str]()
    for seed in range(10):
        rules = LarkRules(vocabulary)
        start = f"{rules.text(dialect.calls.openers[0])} {dialect.calls.rules(rules, TOOLS, is_many=True)}"
        drawn = draw(tokens, vocabulary, rules.grammar(start), seed)
        reply = read(dialect, [drawn], TOOLS)
        assert reply.tool_calls and not reply.content, drawn
        for call in reply.tool_calls:
            tool = next(tool for tool in TOOLS if tool.name == call.name)
            jsonschema.validate(json.loads(call.arguments), tool.parameters or {"type": "object"})
            seen.add(call.name)
    assert seen == {"set_lamp", "now"}


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("json_schema", "{"),
        Grammar("json_schema", "[1]"),
        Grammar("json_schema", '{"a":' * 100 + "1" + "}" * 100),
        Grammar("json_schema", json.dumps({"enum": ["x" * 300_000]})),
        Grammar("json_schema", json.dumps({"allOf": [{"pattern": f"a.{{{n}}}b"} for n in range(50)]})),
        Grammar("json_schema", json.dumps({"type": "nothing"})),
        Grammar("json_schema", json.dumps({"$ref": "#"})),
        Grammar("json_schema", json.dumps({"type": "integer", "multipleOf": 10**9 + 7})),
        Grammar("regex", "(a"),
        Grammar("lark", "start: missing"),
        Grammar("lark", "start: " + " & ".join(["/a.*/"] * 20)),
        Grammar("gbnf", "root = 1"),
        Grammar("gbnf", 'root ::= "a" other'),
        Grammar("gbnf", "root ::= " + "(" * 5000),
    ],
    ids=str,
)
def test_what_is_no_grammar(tokens: GrammarTokens, vocabulary: Vocabulary, grammar: Grammar) -> None:
    with pytest.raises(UsageError) as caught:
        rules = LarkRules(vocabulary)
        body = body_of(rules, grammar)
        tokens.start(lark_of(grammar) if body is None else rules.grammar(body)).mask()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
