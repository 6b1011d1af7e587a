"""A request for a response as a chat: items to messages. Pure."""

from collections.abc import Sequence

from tpi.api.errors import Problem, unsupported
from tpi.api.openai.grammars import read_format, read_grammar
from tpi.api.openai.messages import text_of
from tpi.api.openai.responses.schema import REFUSED, Item, ResponseRequest
from tpi.api.openai.thinking import read_thinking, read_variables
from tpi.api.openai.tools import read_choice, read_tools
from tpi.api.values import only_one, refuse
from tpi.engine.turns import ChatAsk, Message, ToolCall

_ROLES = {"developer": "system"}


def read_response(asked: ResponseRequest, before: Sequence[Message]) -> ChatAsk:
    """``before`` is what was said before, without instructions.

    Raises:
        UsageError: a role is no word.
        Problem: something cannot be done, or does not go together.
    """
    refuse(asked.model_extra, REFUSED)
    if asked.text is not None:
        refuse({"verbosity": asked.text.verbosity}, REFUSED)
    front = (Message("system", asked.instructions),) if asked.instructions else ()
    messages = (*front, *before, *read_input(asked.input))
    if not messages:
        raise Problem(400, "there is no input: give a text, or messages", param="input")
    choosing = read_choice(read_tools(asked.tools), asked.tool_choice)
    form = read_format(asked.text.format, "text.format") if asked.text is not None else None
    return ChatAsk(
        messages,
        choosing.tools,
        choosing.choice,
        choosing.name,
        calls_in_parallel=asked.parallel_tool_calls is not False,
        grammar=only_one({"text.format": form, "grammar": read_grammar(asked)}),
        thinking=read_thinking(asked),
        template_variables=read_variables(asked),
    )


def read_input(given: str | Sequence[Item]) -> tuple[Message, ...]:
    """Thoughts, words and calls that follow each other are one message of the assistant.

    Raises:
        UsageError: a role is no word.
        Problem: an item is of a kind that cannot be read.
    """
    if isinstance(given, str):
        return (Message("user", given),) if given else ()
    read = list[Message]()
    for number, item in enumerate(given):
        message = _read_item(item, f"input.{number}")
        if read and _belong_together(read[-1], message):
            read[-1] = _joined(read[-1], message)
        else:
            read.append(message)
    return tuple(read)


def _read_item(item: Item, place: str) -> Message:
    match item.type:
        case "message":
            role = item.role or "user"
            return Message(_ROLES.get(role, role), text_of(item.content, f"{place}.content"))
        case "reasoning":
            thoughts = text_of(item.content, place) or text_of(item.summary, place)
            return Message("assistant", "", thoughts)
        case "function_call":
            if not item.name:
                raise Problem(400, f"{place} calls no function: give its name", param=place)
            return Message("assistant", "", "", (ToolCall(item.call_id or "", item.name, item.arguments or "{}"),))
        case "function_call_output":
            return Message("tool", text_of(item.output, f"{place}.output"), tool_call_id=item.call_id or "")
        case _:
            raise unsupported(place, f"an item of type {item.type!r}")


def _belong_together(first: Message, second: Message) -> bool:
    """The second goes on where the first has stopped: thoughts, then words, then calls."""
    if first.role != "assistant" or second.role != "assistant":
        return False
    return bool(second.tool_calls) or (not first.content and not first.tool_calls)


def _joined(first: Message, second: Message) -> Message:
    return Message(
        "assistant",
        first.content + second.content,
        first.reasoning + second.reasoning,
        first.tool_calls + second.tool_calls,
    )
