"""Requests in Anthropic's words, as what is asked of the engine. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from tpi.api.anthropic.schema import REFUSED, Block, Content, GivenMessage, MessageRequest, PromptFields
from tpi.api.errors import Problem, unsupported
from tpi.api.openai.tools import Choosing, check_some, known_tool
from tpi.api.values import json_text, refuse, schema_grammar
from tpi.engine.settings import MAX_TOKENS, GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall

_UNSEEN = ("redacted_thinking",)
"""Blocks that mean nothing to a model here."""
_FAILED = "Error: "
"""So is a model told of a tool that failed; templates know no other way."""


def read_messages(asked: PromptFields) -> ChatAsk:
    """An assistant's message at the end is the beginning of the answer.

    Raises:
        UsageError: a role is no word.
        Problem: something cannot be done, or does not go together.
    """
    refuse(asked.model_extra, REFUSED)
    system = _text(asked.system, "system")
    front = [Message("system", system)] if system else []
    turns = [turn for number, message in enumerate(asked.messages) for turn in _turns(message, f"messages.{number}")]
    choosing = _read_choosing(asked)
    choice = asked.tool_choice
    return ChatAsk(
        (*front, *turns),
        choosing.tools,
        choosing.choice,
        choosing.name,
        calls_in_parallel=not (choice is not None and choice.disable_parallel_tool_use),
        grammar=_read_format(asked),
        thinking=_read_thinking(asked),
        continues_last=asked.messages[-1].role == "assistant",
    )


def read_sampling(asked: MessageRequest, defaults: SamplingSettings) -> SamplingSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    """
    given = {name: value for name in ("temperature", "top_k", "top_p") if (value := getattr(asked, name)) is not None}
    return replace(defaults, **given)


def read_generation(asked: MessageRequest) -> GenerationSettings:
    """Raises:
    UsageError: a stop string is too long.
    """
    return GenerationSettings(
        min(asked.max_tokens, MAX_TOKENS), tuple(text for text in asked.stop_sequences or () if text)
    )


def _turns(message: GivenMessage, place: str) -> Iterator[Message]:
    """Results of tools are turns of their own, before what their bearer says himself."""
    if isinstance(message.content, str):
        yield Message(message.role, message.content)
        return
    said = list[Block]()
    for number, block in enumerate(message.content):
        if block.type == "tool_result":
            result = _text(block.content, f"{place}.content.{number}")
            result = f"{_FAILED}{result}" if block.is_error else result
            yield Message("tool", result, tool_call_id=block.tool_use_id or "")
        elif block.type not in _UNSEEN:
            said.append(block)
    calls = tuple(_call(block, place) for block in said if block.type == "tool_use")
    thoughts = "".join(block.thinking or "" for block in said if block.type == "thinking")
    words = [block for block in said if block.type not in ("tool_use", "thinking")]
    if said or not message.content:
        yield Message(message.role, _joined(words, f"{place}.content"), thoughts, calls)


def _call(block: Block, place: str) -> ToolCall:
    if not block.name:
        raise Problem(400, f"{place} calls no tool: give its name", param=place)
    return ToolCall(block.id or "", block.name, json_text(block.input or {}, place))


def _text(content: Content | None, place: str) -> str:
    return _joined(content, place) if isinstance(content, list) else content or ""


def _joined(blocks: Iterable[Block], place: str) -> str:
    texts = list[str]()
    for block in blocks:
        if block.type != "text":
            raise Problem(400, f"a content of type {block.type!r} cannot be read: leave it out of {place}", param=place)
        texts.append(block.text or "")
    return "".join(texts)


def _read_choosing(asked: PromptFields) -> Choosing:
    tools = tuple(_read_tools(asked))
    choice = asked.tool_choice
    match choice.type if choice is not None else "auto":
        case "auto":
            return Choosing(tools)
        case "none":
            return Choosing(tools, "none")
        case "any":
            check_some(tools)
            return Choosing(tools, "required")
        case "tool" if choice is not None:
            return Choosing(tools, "required", known_tool(tools, choice.name))
        case kind:
            raise unsupported("tool_choice", f"a choice of tools {kind!r}")


def _read_tools(asked: PromptFields) -> Iterator[Tool]:
    for number, tool in enumerate(asked.tools or ()):
        place = f"tools.{number}"
        if tool.type not in (None, "custom"):
            raise unsupported(place, f"a tool of type {tool.type!r}")
        json_text(tool.input_schema, place)
        yield Tool(tool.name, tool.description or "", tool.input_schema or {}, bool(tool.strict))


def _read_format(asked: PromptFields) -> Grammar | None:
    form = asked.output_config.format if asked.output_config is not None else None
    if form is None:
        return None
    if form.type != "json_schema":
        raise unsupported("output_config.format", f"a format of type {form.type!r}")
    return schema_grammar(form.schema_, "output_config.format")


def _read_thinking(asked: PromptFields) -> Thinking:
    given, effort = asked.thinking, asked.output_config.effort if asked.output_config is not None else None
    if given is None:
        return Thinking(effort=effort)
    is_on = {"enabled": True, "disabled": False}.get(given.type)
    return Thinking(is_on, effort, given.budget_tokens if is_on else None)
