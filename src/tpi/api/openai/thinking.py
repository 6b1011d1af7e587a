"""Whether, how hard and how long a model thinks, by the names that the servers of several makers have for it. Pure."""

from typing import Annotated, Any

from pydantic import Field

from tpi.api.description import Given, few
from tpi.api.values import json_text
from tpi.engine.turns import Thinking

Budget = Annotated[int, Field(ge=-1, lt=1 << 31)]
_SWITCHES = ("enable_thinking", "thinking")
"""Variables of templates that turn it on and off."""


class Reasoning(Given):
    """As OpenAI's responses and OpenRouter's chats have it."""

    effort: Annotated[str, Field(max_length=64)] | None = None
    max_tokens: Budget | None = None
    enabled: bool | None = None


class ThinkingMode(Given):
    """As DeepSeek and Anthropic have it."""

    type: str
    budget_tokens: Budget | None = None

    @property
    def is_on(self) -> bool | None:
        """None: it is left to the model."""
        return {"enabled": True, "disabled": False}.get(self.type)


class ThinkingFields(Given):
    """All of them."""

    reasoning_effort: Annotated[str, Field(max_length=64)] | None = None
    reasoning: Reasoning | None = None
    thinking: ThinkingMode | None = None
    enable_thinking: bool | None = None
    thinking_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    thinking_token_budget: Budget | None = None
    chat_template_kwargs: Annotated[dict[str, Any], few(64)] | None = None


def read_thinking(asked: ThinkingFields) -> Thinking:
    """What is said twice holds as OpenAI's names say it. A budget of 0 turns it off, one of -1 is none."""
    reasoning, mode = asked.reasoning or Reasoning(), asked.thinking
    variables = asked.chat_template_kwargs or {}
    switches = [asked.enable_thinking, *(variables.get(name) for name in _SWITCHES), reasoning.enabled]
    if mode is not None:
        switches.append(mode.is_on)
    effort = asked.reasoning_effort or reasoning.effort or variables.get("reasoning_effort")
    budgets = [asked.thinking_budget, asked.thinking_budget_tokens, asked.thinking_token_budget, reasoning.max_tokens]
    budgets += [mode.budget_tokens if mode is not None else None, variables.get("thinking_budget")]
    budget = _first(value for value in budgets if isinstance(value, int))
    is_on = _first(value for value in switches if isinstance(value, bool))
    if effort == "none" or budget == 0:
        return Thinking(is_on=False)
    is_bounded = budget is not None and budget > 0
    return Thinking(is_on, effort if isinstance(effort, str) else None, budget if is_bounded else None)


def read_variables(asked: ThinkingFields) -> dict[str, Any]:
    """What else the template is given.

    Raises:
        Problem: it is no JSON.
    """
    taken = (*_SWITCHES, "reasoning_effort", "thinking_budget")
    variables = {name: value for name, value in (asked.chat_template_kwargs or {}).items() if name not in taken}
    json_text(variables, "chat_template_kwargs")
    return variables


def _first(values: Any) -> Any:
    return next(iter(values), None)
