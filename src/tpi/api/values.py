"""Values of requests that several APIs read alike. Pure."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tpi.api.errors import Problem, unsupported
from tpi.engine.turns import Grammar

_MEANS_SOMETHING = re.compile(r"([\\.+*?()|\[\]{}^$])")


def json_text(value: Any, param: str) -> str:
    """``value``, which came as JSON, as JSON.

    Raises:
        Problem: it is too deep, or holds what JSON does not know.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise Problem(400, f"{param} cannot be read as JSON: {error}", param=param) from error
    return text


def arguments_of(text: str) -> dict[str, Any]:
    """Of a call, for those who want an object: what a model wrote that is none is given as its text."""
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"arguments": text}
    return found if isinstance(found, dict) else {"arguments": found}


def schema_grammar(schema: Any, param: str) -> Grammar:
    """Of answers that follow a JSON schema.

    Raises:
        Problem: it is none.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise Problem(400, f"{param} is not JSON: {error}", param=param) from error
    if not isinstance(schema, dict | bool):
        raise Problem(400, f"{param} is a {type(schema).__name__}, a JSON schema is an object", param=param)
    return Grammar("json_schema", json_text(schema, param))


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """Of answers that are one of ``choices``."""
    return Grammar("regex", "|".join(_MEANS_SOMETHING.sub(r"\\\1", choice) for choice in choices))


def grammar_of(text: str) -> Grammar:
    """By its looks: rules of GBNF are written with ``::=``."""
    return Grammar("gbnf" if "::=" in text else "lark", text)


def only_one(grammars: Mapping[str, Grammar | None]) -> Grammar | None:
    """The one that was given, if any, of those that go by these names.

    Raises:
        Problem: there are several.
    """
    given = {name: grammar for name, grammar in grammars.items() if grammar is not None}
    if len(given) > 1:
        first, second = list(given)[:2]
        raise Problem(400, f"{first} and {second} both say what the answer looks like: give one of them", param=second)
    return next(iter(given.values()), None)


def refuse(given: Mapping[str, Any] | None, harmless: Mapping[str, Collection[Any]]) -> None:
    """Of what was given by names that are in ``harmless``: every other value, as it would change the answer.

    Raises:
        Problem: there is one.
    """
    for name, value in (given or {}).items():
        if name in harmless and value is not None and value not in harmless[name]:
            raise unsupported(name, f"{name} with the value {str(value)[:80]!r}")
