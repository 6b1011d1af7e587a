"""A chat in OpenAI's words, as what is asked of the engine. Pure."""

from tpi.api.errors import Problem
from tpi.api.openai.grammars import read_grammar
from tpi.api.openai.messages import read_messages
from tpi.api.openai.schema import ChatRequest
from tpi.api.openai.thinking import read_thinking, read_variables
from tpi.api.openai.tools import Choosing, GivenChoice, GivenTool, read_choice, read_tools
from tpi.api.refusals import OF_CHATS
from tpi.api.values import refuse
from tpi.engine.turns import ChatAsk


def read_chat(asked: ChatRequest) -> ChatAsk:
    """Raises:
    UsageError: a role is no word.
    Problem: something cannot be done, or does not go together.
    """
    continues = bool(asked.continue_final_message) or asked.messages[-1].goes_on
    # Going on with a message and beginning one exclude each other, as vLLM has it.
    harmless = {**OF_CHATS, "add_generation_prompt": (not continues, True)}
    refuse(asked.model_extra, harmless)
    messages = read_messages(asked.messages)
    if continues and messages[-1].role != "assistant":
        raise Problem(
            400,
            f"only an assistant's message can be gone on with, the last is the {messages[-1].role}'s",
            param="messages",
        )
    choosing = _read_choosing(asked)
    return ChatAsk(
        messages,
        choosing.tools,
        choosing.choice,
        choosing.name,
        calls_in_parallel=asked.parallel_tool_calls is not False and not asked.functions,
        grammar=read_grammar(asked),
        thinking=read_thinking(asked),
        template_variables=read_variables(asked),
        continues_last=continues,
    )


def _read_choosing(asked: ChatRequest) -> Choosing:
    """The older form is told by its names."""
    if not asked.functions:
        return read_choice(read_tools(asked.tools), asked.tool_choice)
    if asked.tools:
        raise Problem(400, "functions are the older form of tools: give one of them", param="functions")
    called = asked.function_call
    choice = called if called is None or isinstance(called, str) else GivenChoice(name=called.name)
    return read_choice(read_tools([GivenTool(function=function) for function in asked.functions]), choice)
