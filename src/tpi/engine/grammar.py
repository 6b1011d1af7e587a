"""Grammars over a model's tokens: JSON schemas, expressions, Lark and GBNF, by llguidance.

Owns llguidance's copy of the vocabulary, made when the first grammar is asked for. Master only, any thread. A hostile
grammar ends in an error, soon: its text, nesting and what it compiles to are bounded.
"""

import functools
import importlib
import json
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpi.engine.constraint import Allowed
from tpi.engine.gbnf import gbnf_to_lark
from tpi.engine.turns import Grammar
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import ConstraintError, UsageError

GROWTH_BYTES, TOKEN_GROWTH_BYTES = 8_000_000, 420
"""What a process grows by with the first grammars, beside what each token of the vocabulary adds; measured with 2048,
32,000 and 128,256 tokens: 7 to 8, 15 to 17 and 49 to 52 MB (``python -m bench growth``)."""
MAX_CHARS = 1 << 18
MAX_DEPTH = 64
MAX_JOINED = 8
_MAX_RULES = 10_000
_KEPT = 4
"""An agent asks with the same tools again and again."""
_SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
"""As models have learned it: a model that may put any white space somewhere may never end."""


def memory_bytes(n_tokens: int) -> int:
    """What grammars take over a vocabulary of so many tokens, once there is one."""
    return GROWTH_BYTES + n_tokens * TOKEN_GROWTH_BYTES


class GrammarTokens:
    """The vocabulary, as grammars see it."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._kept: dict[str, Any] = {}
        """Compiled, at their beginnings; the one that was used last comes last."""

    @property
    def n_tokens(self) -> int:
        return self._vocabulary.n_tokens

    def start(self, lark: str) -> "Matcher":
        """Raises:
        UsageError: it is no grammar, or too large a one.
        """
        if len(lark) > 4 * MAX_CHARS:
            raise UsageError(f"the grammar has {len(lark):,} characters, the limit is {4 * MAX_CHARS:,}")
        with self._lock:
            kept = self._kept.pop(lark, None)
        matcher = self._compiled(lark) if kept is None else kept
        with self._lock:
            self._kept[lark] = matcher
            while len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
            return Matcher(matcher.deep_copy(), self.n_tokens)

    def _compiled(self, lark: str) -> Any:
        make = _library().LLMatcher
        matcher = make(self._made(), make.grammar_from_lark(lark), log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # some find out only now
        if matcher.is_error():
            raise UsageError(f"the grammar cannot be used: {_one_line(matcher.get_error())}")
        return matcher

    @functools.cached_property
    def all_but_ends(self) -> Allowed:
        """The mask of what does not end an answer."""
        ends = map(self._vocabulary.is_end_of_generation, range(self.n_tokens))
        return ~np.fromiter(ends, np.bool_, self.n_tokens)

    def tokenize(self, data: bytes) -> list[int]:
        """Text that goes on, whatever was before it."""
        tokens: list[int] = self._made().tokenize_bytes(data)
        return tokens

    def _made(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _make_tokenizer(self._vocabulary)
            return self._tokenizer


class Matcher:
    """How far an answer has got in its grammar. One thread at a time."""

    def __init__(self, matcher: Any, n_tokens: int) -> None:
        self._matcher, self._n_tokens = matcher, n_tokens

    def mask(self) -> Allowed:
        """See ``Constraint.mask``. Raises ``ConstraintError``."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(np.bool_)

    def allows(self, token: int) -> bool:
        """Whether it may come next. Raises ``ConstraintError``."""
        mask = self.mask()
        return mask is None or bool(mask[token])

    def accept(self, token: int) -> None:
        """Raises ``ConstraintError``: it was not allowed."""
        self._matcher.consume_token(token)
        self._check()

    def try_accept(self, tokens: Sequence[int]) -> bool:
        """Whether all of them may come next; if so, they have."""
        told = list(tokens)
        return bool(self._matcher.validate_tokens(told) == len(told) and self._matcher.consume_tokens(told))

    @property
    def is_complete(self) -> bool:
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConstraintError(f"the grammar of the answer cannot go on: {_one_line(self._matcher.get_error())}")


class LarkRules:
    """A grammar that is being written; see ``dialects.calls.Rules``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._rules: list[str] = []
        self._kept: dict[str, str] = {}

    def text(self, text: str) -> str:
        parts, position = list[str](), 0
        for start, end in self._vocabulary.special_spans(text):
            if start >= position:
                parts += [_quoted(text[position:start]), f"<[{self._vocabulary.special_tokens[text[start:end]]}]>"]
                position = end
        parts.append(_quoted(text[position:]))
        return " ".join(part for part in parts if part) or '""'

    def json(self, schema: object) -> str:
        return self.rule(f"%json {checked_schema(schema)}")

    def until(self, end: str) -> str:
        if (token := self._vocabulary.special_tokens.get(end)) is not None:
            return f"{self.rule('/(?s:.*)/')} <[{token}]>"
        return self.rule(f"/(?s:.*)/ {_quoted(end)}", "[lazy]")

    def rule(self, body: str, how: str = "") -> str:
        key = how + body
        if key not in self._kept:
            if len(self._rules) >= _MAX_RULES:
                raise UsageError(f"the tools need a grammar of more than {_MAX_RULES:,} rules: give fewer")
            self._kept[key] = f"r{len(self._rules)}"
            self._rules.append(f"{self._kept[key]}{how}: {body}")
        return self._kept[key]

    def grammar(self, start: str) -> str:
        """All of it, as Lark."""
        return "\n".join(["%llguidance {}", f"start: {start}", *self._rules])


def body_of(rules: LarkRules, grammar: Grammar) -> str | None:
    """The rule of an answer that is to look like that; None: it is a whole grammar of its own (``lark_of``)."""
    if grammar.kind == "json_object":
        return rules.json({"type": "object"})
    if grammar.kind == "json_schema":
        return rules.json(parsed_schema(grammar.text))
    return None


def lark_of(grammar: Grammar) -> str:
    """Of an expression or a grammar. Raises ``UsageError``."""
    if len(grammar.text) > MAX_CHARS:
        raise UsageError(f"the grammar has {len(grammar.text):,} characters, the limit is {MAX_CHARS:,}")
    if grammar.kind == "regex":
        return f"start: /{_slashed(grammar.text)}/"
    if grammar.kind == "lark" and grammar.text.count("&") + grammar.text.count("~") > MAX_JOINED:
        raise UsageError(f"the grammar has more than {MAX_JOINED} of & and ~: use fewer")
    return gbnf_to_lark(grammar.text) if grammar.kind == "gbnf" else grammar.text


def parsed_schema(text: str) -> Any:
    """Raises:
    UsageError: it is no JSON.
    """
    if len(text) > MAX_CHARS:
        raise UsageError(f"the JSON schema has {len(text):,} characters, the limit is {MAX_CHARS:,}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is no JSON: {_one_line(str(error))}") from error


def checked_schema(schema: object) -> str:
    """Its text. Raises ``UsageError``: it is too large, or nested too deeply."""
    if not isinstance(schema, dict | bool):
        raise UsageError(f"a JSON schema is an object, not {str(schema)[:80]!r}")
    _check_bounds(schema)
    # Its own ways of changing what a schema means are not for callers.
    text = json.dumps({**schema, "x-guidance": _SPACING} if isinstance(schema, dict) else schema)
    if len(text) > MAX_CHARS:
        raise UsageError(f"the JSON schema has {len(text):,} characters, the limit is {MAX_CHARS:,}")
    return text


def _check_bounds(schema: object) -> None:
    left: list[tuple[object, int, bool]] = [(schema, 1, False)]
    n_joined = 0
    while left:
        part, depth, is_joined = left.pop()
        if depth > MAX_DEPTH:
            raise UsageError(f"the JSON schema is nested more than {MAX_DEPTH} deep: make it flatter")
        if isinstance(part, dict):
            n_joined += is_joined and ("pattern" in part or "$ref" in part)
            left += [(value, depth + 1, is_joined or key == "allOf") for key, value in part.items()]
        elif isinstance(part, list):
            left += [(value, depth + 1, is_joined) for value in part]
    # What joins them takes time that doubles with each.
    if n_joined > MAX_JOINED:
        raise UsageError(f"allOf of the JSON schema joins {n_joined} patterns, at most {MAX_JOINED} can be")


class _Tokens:
    """What llguidance asks of a tokenizer."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        ends, tokens, specials = list[int](), list[bytes](), list[int]()
        for token in range(vocabulary.n_tokens):
            is_end = vocabulary.is_end_of_generation(token)
            if is_end or vocabulary.is_special(token):
                specials.append(token)
                tokens.append(vocabulary.token_text(token).encode() or b"<special>")
            else:
                tokens.append(vocabulary.token_bytes(token))
            if is_end:
                ends.append(token)
        self.ends = ends or [vocabulary.n_tokens - 1]
        self.eos_token_id, self.bos_token_id = self.ends[0], vocabulary.bos_id
        self.tokens, self.special_token_ids = tokens, specials
        self._vocabulary = vocabulary

    def __call__(self, text: bytes | str) -> list[int]:
        whole = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._vocabulary.tokenize_on(whole, add_special=False, parse_special=False)


def _library() -> Any:
    """Loaded when it is first needed: 7 MB, that most masters never need."""
    try:
        return importlib.import_module("llguidance")
    except ImportError as error:
        raise UsageError(
            "tools and grammars need llguidance, which is not installed: say 'pip install llguidance'"
        ) from error


def _limits() -> Any:
    return _library().LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        max_lexer_states=10_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _make_tokenizer(vocabulary: Vocabulary) -> Any:
    tokens, library = _Tokens(vocabulary), _library()
    return library.LLTokenizer(library.TokenizerWrapper(tokens), n_vocab=vocabulary.n_tokens, eos_token=tokens.ends)


def _quoted(text: str) -> str:
    return json.dumps(text) if text else ""


def _slashed(expression: str) -> str:
    """An expression between slashes."""
    return re.sub(r"\\.|/", lambda match: "\\/" if match[0] == "/" else match[0], expression, flags=re.DOTALL).replace(
        "\n", "\\n"
    )


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + " …"
