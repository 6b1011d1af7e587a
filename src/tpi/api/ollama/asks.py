"""Requests in Ollama's words, as what is asked of the engine. Pure."""

from collections.abc import Sequence

from tpi.api.asks import TextAsk
from tpi.api.drawing import read_drawing, seed_or_none
from tpi.api.errors import unsupported
from tpi.api.ollama.schema import Asked, ChatMessage, ChatRequest, GenerateRequest, Options
from tpi.api.refusals import OF_BOTH
from tpi.api.values import json_text, refuse, schema_grammar
from tpi.engine.settings import MAX_TOKENS, GenerationSettings, SamplingSettings
from tpi.engine.turns import ChatAsk, Grammar, Message, Thinking, Tool, ToolCall

_HARMLESS = {**OF_BOTH, "tfs_z": (1,)}


def read_chat(asked: ChatRequest) -> ChatAsk:
    """Raises:
    UsageError: a role is no word.
    Problem: something cannot be done.
    """
    tools = tuple(
        Tool(tool.function.name, tool.function.description or "", tool.function.parameters or {})
        for tool in asked.tools or ()
    )
    json_text([tool.parameters for tool in tools], "tools")
    messages = _read_messages(asked.messages or ())
    return ChatAsk(messages, tools, grammar=_read_format(asked), thinking=_read_think(asked))


def read_text(asked: GenerateRequest) -> ChatAsk | TextAsk:
    """A chat of one turn, or the prompt as it is. Raises as ``read_chat``."""
    for name in ("suffix", "template", "images", "context"):
        if getattr(asked, name):
            raise unsupported(name, f"a request with {name}")
    if asked.raw:
        return TextAsk(asked.prompt or "", grammar=_read_format(asked))
    front = (Message("system", asked.system),) if asked.system else ()
    messages = (*front, Message("user", asked.prompt or ""))
    return ChatAsk(messages, grammar=_read_format(asked), thinking=_read_think(asked))


def read_sampling(options: Options, defaults: SamplingSettings) -> SamplingSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    Problem: there is one that would change the answer, and cannot be done.
    """
    refuse(options.model_extra, _HARMLESS)
    return read_drawing(options, defaults, seed_or_none(options.seed))


def read_generation(asked: Asked, n_context: int, *, raw: bool) -> GenerationSettings:
    """Raises:
    UsageError: a value lies outside its limits.
    """
    options = asked.options or Options()
    stop = (options.stop,) if isinstance(options.stop, str) else tuple(options.stop or ())
    n_most = options.num_predict if options.num_predict is not None and options.num_predict > 0 else n_context
    n_logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    return GenerationSettings(min(n_most, MAX_TOKENS), tuple(text for text in stop if text), raw, n_logprobs)


def _read_messages(given: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """Calls that have no names of their own get one; results belong to them in their order."""
    read, open_calls = list[Message](), list[str]()
    for number, message in enumerate(given):
        if message.images:
            raise unsupported(f"messages.{number}.images", "a message with images")
        calls = tuple(
            ToolCall(
                call.id or f"call_{number}_{place}",
                call.function.name,
                json_text(call.function.arguments or {}, f"messages.{number}.tool_calls"),
            )
            for place, call in enumerate(message.tool_calls or ())
        )
        open_calls = [call.id for call in calls] or open_calls
        answered = message.tool_call_id or ""
        if message.role == "tool" and not answered and open_calls:
            answered = open_calls.pop(0)
        read.append(
            Message(
                message.role, message.content or "", message.thinking or "", calls, answered, message.tool_name or ""
            )
        )
    return tuple(read)


def _read_format(asked: Asked) -> Grammar | None:
    if not asked.format and asked.format != {}:
        return None
    if asked.format == "json":
        return Grammar("json_object")
    if isinstance(asked.format, str):
        raise unsupported("format", f"the format {asked.format[:80]!r}")
    return schema_grammar(asked.format, "format")


def _read_think(asked: Asked) -> Thinking:
    if isinstance(asked.think, str):
        return Thinking(effort=asked.think)
    return Thinking(asked.think)
