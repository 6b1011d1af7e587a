"""What an answer has to look like, by the names of OpenAI, vLLM and llama.cpp. Pure."""

from typing import Annotated, Any

from pydantic import Field

from tpi.api.description import Given
from tpi.api.errors import unsupported
from tpi.api.values import choice_grammar, grammar_of, only_one, schema_grammar
from tpi.engine.turns import Grammar

MAX_GRAMMAR_CHARS = 1 << 20
Text = Annotated[str, Field(max_length=MAX_GRAMMAR_CHARS)]
Choices = Annotated[list[Text], Field(min_length=1, max_length=1024, fail_fast=True)]
Schema = dict[str, Any] | bool | Text


class NamedSchema(Given):
    schema_: Annotated[dict[str, Any] | bool, Field(alias="schema", default_factory=dict)]


class Format(Given):
    """As ``response_format``, and as ``text.format`` of responses, where a schema lies in it."""

    type: str
    json_schema: NamedSchema | None = None
    schema_: Annotated[dict[str, Any] | bool | None, Field(alias="schema")] = None
    grammar: Text | None = None


class Structured(Given):
    """vLLM's newer form."""

    json_: Annotated[Schema | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class GrammarFields(Given):
    """All of them."""

    response_format: Format | None = None
    structured_outputs: Structured | None = None
    guided_json: Schema | None = None
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    grammar: Text | None = None
    json_schema: Schema | None = None


def read_grammar(asked: GrammarFields) -> Grammar | None:
    """Raises:
    Problem: there are several, or one that cannot be.
    """
    found = {
        "response_format": read_format(asked.response_format, "response_format"),
        "guided_json": None if asked.guided_json is None else schema_grammar(asked.guided_json, "guided_json"),
        "guided_regex": Grammar("regex", asked.guided_regex) if asked.guided_regex else None,
        "guided_choice": choice_grammar(asked.guided_choice) if asked.guided_choice else None,
        "guided_grammar": grammar_of(asked.guided_grammar) if asked.guided_grammar else None,
        "grammar": Grammar("gbnf", asked.grammar) if asked.grammar else None,
        "json_schema": None if asked.json_schema is None else schema_grammar(asked.json_schema, "json_schema"),
    }
    if (more := asked.structured_outputs) is not None:
        found |= {
            "structured_outputs.json": None if more.json_ is None else schema_grammar(more.json_, "structured_outputs"),
            "structured_outputs.json_object": Grammar("json_object") if more.json_object else None,
            "structured_outputs.regex": Grammar("regex", more.regex) if more.regex else None,
            "structured_outputs.choice": choice_grammar(more.choice) if more.choice else None,
            "structured_outputs.grammar": grammar_of(more.grammar) if more.grammar else None,
        }
    return only_one(found)


def read_format(given: Format | None, param: str) -> Grammar | None:
    """Raises:
    Problem: it is of a kind that cannot be.
    """
    if given is None or given.type == "text":
        return None
    schema = given.json_schema.schema_ if given.json_schema is not None else given.schema_
    match given.type:
        case "json_schema":
            return schema_grammar({} if schema is None else schema, param)
        case "json_object":
            return Grammar("json_object") if schema is None else schema_grammar(schema, param)
        case "grammar" if given.grammar:
            return grammar_of(given.grammar)
        case _:
            raise unsupported(param, f"a response format of type {given.type!r}")
