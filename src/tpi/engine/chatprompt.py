"""From what a chat asks to what the engine needs: the prompt's tokens, who reads the answer, the form it must have.

Knows the model's template, dialect and vocabulary; no passes. Master only, any thread.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tpi.engine.answerform import Form, start_form
from tpi.engine.callids import with_named_ids, with_short_ids
from tpi.engine.chat import ChatTemplate, Segment
from tpi.engine.constraint import Constraint
from tpi.engine.dialects.calls import check_tools, loosened
from tpi.engine.dialects.dialect import Dialect
from tpi.engine.dialects.reader import DialectReader
from tpi.engine.dialects.registry import GENERIC, find_dialect
from tpi.engine.grammar import GrammarTokens, LarkRules, body_of, lark_of
from tpi.engine.prompt import encode_chat, encode_raw, encode_segments
from tpi.engine.reading import MakeReader, PlainReader
from tpi.engine.templateinput import TemplateInput
from tpi.engine.toolprompt import described, told_of_tools, with_tools
from tpi.engine.turns import ChatAsk, Grammar, Message, Tool
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import UsageError

MakeConstraint = Callable[[], Constraint | None]


def _no_constraint() -> None:
    return None


@dataclass(frozen=True)
class Prompt:
    """Its tokens, after how many of them other prompts are expected to differ, who reads an answer to it, what form
    that must have, and which special tokens are part of its text; whether the answer goes on with words that are there
    already (``is_begun``)."""

    tokens: tuple[int, ...]
    marks: tuple[int, ...] = ()
    make_reader: MakeReader = PlainReader
    make_constraint: MakeConstraint = _no_constraint
    shown: frozenset[int] = frozenset()
    is_begun: bool = False


class ChatPrompts:
    """Makes them, for one model."""

    def __init__(self, vocabulary: Vocabulary, template: ChatTemplate, of_tools: ChatTemplate | None = None) -> None:
        """``of_tools``: another template for chats in which tools are offered."""
        self._vocabulary, self._template = vocabulary, template
        self._grammars = GrammarTokens(vocabulary)
        self._of_tools = self
        if of_tools is not None:
            self._of_tools = ChatPrompts(vocabulary, of_tools)
            self._of_tools._grammars = self._grammars
        self._native: Dialect = find_dialect(template.source, self._is_token)

    @functools.cached_property
    def dialect(self) -> Dialect:
        """Whose template knows no tools is told in words how to write calls."""
        traits = self._template.traits
        is_native = self._native.is_harmony or traits.knows_tools or traits.has_tools_inside or self._shows_calls
        return self._native if is_native else replace(self._native, calls=GENERIC.calls)

    @property
    def _shows_calls(self) -> bool:
        """Tools are told of in words, and calls as the template writes them."""
        traits = self._template.traits
        return traits.knows_calls and not traits.knows_tools and bool(self._native.example)

    def chat(
        self,
        ask: ChatAsk,
        check: Callable[[], None] = lambda: None,
        check_text: Callable[[str], None] = lambda text: None,
    ) -> Prompt:
        """``check`` is called between steps that may be long, ``check_text`` with the text before it is read; what they
        raise ends the work.

        Raises:
            UsageError: the template refuses the chat or fails with it, a text is too long, a tool or a grammar cannot
                be used.
        """
        if ask.tools and self._of_tools is not self:
            return self._of_tools.chat(ask, check, check_text)
        check_tools(ask.tools)
        tools = ask.tools if ask.tool_choice != "none" else ()
        chosen = _chosen(ask, tools)
        segments = self._segments(ask, tools)
        check()
        thinks = self._has_opened(segments)
        make_constraint = self._constraint(ask, chosen, thinks=thinks)
        check()
        check_text("".join(segment.text for segment in segments))
        tokens = tuple(encode_segments(self._vocabulary, segments))
        is_begun = ask.continues_last and bool(ask.messages[-1].content)
        make_reader = partial(DialectReader, self.dialect, chosen, starts_thinking=thinks, is_begun=is_begun)
        return Prompt(tokens, (), make_reader, make_constraint, self._shown, is_begun)

    def beginning(self, messages: tuple[Message, ...], ask: ChatAsk) -> list[int]:
        """Tokens of the first messages alone. Raises as ``chat``."""
        if ask.tools and self._of_tools is not self:
            return self._of_tools.beginning(messages, ask)
        tools = ask.tools if ask.tool_choice != "none" else ()
        asked = replace(self._input(messages, ask, tools), add_generation_prompt=False)
        return encode_chat(self._vocabulary, self._template, asked)

    def text(self, tokens: tuple[int, ...], grammar: Grammar | None) -> Prompt:
        """One that is taken as it is. Raises as ``chat``."""
        if grammar is None:
            return Prompt(tokens)
        rules = LarkRules(self._vocabulary)
        body = body_of(rules, grammar)
        form = Form(grammar=lark_of(grammar) if body is None else rules.grammar(body))
        make_constraint = partial(start_form, form, self._grammars, self._vocabulary)
        make_constraint()
        return Prompt(tokens, make_constraint=make_constraint)

    def raw(self, text: str, grammar: Grammar | None = None) -> Prompt:
        """As ``text``."""
        return self.text(tuple(encode_raw(self._vocabulary, text)), grammar)

    @functools.cached_property
    def _shown(self) -> frozenset[int]:
        """Looked for when the first chat comes, among all tokens."""
        marks = " ".join(self.dialect.marks)
        specials = {marks[start:end] for start, end in self._vocabulary.special_spans(marks)}
        return frozenset(self._vocabulary.special_tokens[text] for text in specials)

    # The prompt.

    def _segments(self, ask: ChatAsk, tools: tuple[Tool, ...]) -> tuple[Segment, ...]:
        messages = ask.messages
        last = messages[-1] if ask.continues_last and messages else None
        if ask.continues_last and (last is None or last.role != "assistant" or last.tool_calls):
            raise UsageError("only an assistant's words, as the last message, can be gone on with")
        if last is not None and last.content and (begun := self._try_begun(ask, tools)) is not None:
            return begun
        before = messages if last is None else messages[:-1]
        segments = self._template.render(self._input(before, ask, tools), self._is_suspect)
        segments += tuple(self._silence(ask, segments))
        return segments if last is None else (*segments, *self._begun(last, segments))

    def _try_begun(self, ask: ChatAsk, tools: tuple[Tool, ...]) -> tuple[Segment, ...] | None:
        """The beginning of an answer as the template writes it; some refuse an assistant's turn at the end."""
        try:
            return self._template.render_begun(self._input(ask.messages, ask, tools), self._is_suspect)
        except UsageError:
            return None

    def _input(self, messages: tuple[Message, ...], ask: ChatAsk, tools: tuple[Tool, ...]) -> TemplateInput:
        needs_tools = bool(tools) or any(message.tool_calls or message.role == "tool" for message in messages)
        variables = self._variables(ask)
        if needs_tools and not self._template.traits.knows_tools:
            if self._template.traits.has_tools_inside:
                front = () if messages and messages[0].role == "system" else (Message("system", "You can call tools."),)
                return TemplateInput((*front, *messages), tools, variables)
            if self._shows_calls:
                messages = tuple(told_of_tools(messages, tools, self.dialect.example))
            else:
                if "xml_tools" in self._template.source and tools:
                    variables["xml_tools"] = [described(tool) for tool in tools]
                    tools = ()
                messages = with_tools(messages, tools, knows_system=self._template.traits.knows_system)
            tools = ()
        if self.dialect.short_ids:
            messages = with_short_ids(messages)
        if self.dialect.named_ids:
            messages = with_named_ids(messages)
        return TemplateInput(messages, tools, variables)

    def _variables(self, ask: ChatAsk) -> dict[str, Any]:
        """Those that the caller sets win."""
        thinking, made = ask.thinking, dict[str, Any]()
        if thinking.is_on is not None:
            made |= {"enable_thinking": thinking.is_on, "thinking": thinking.is_on}
        if thinking.effort is not None:
            made["reasoning_effort"] = thinking.effort
        if "thinking_budget" in self._template.source and (thinking.budget_tokens or thinking.is_on is False):
            made["thinking_budget"] = thinking.budget_tokens or 0
        return made | dict(ask.template_variables)

    def _silence(self, ask: ChatAsk, segments: tuple[Segment, ...]) -> list[Segment]:
        """What ends the thinking before it begins, where it is not wanted and the template does not do that."""
        tags = self.dialect.thinking
        if ask.thinking.is_on is not False or tags is None or self.dialect.is_harmony:
            return []
        if self._has_opened(segments):
            return [Segment(f"\n{tags.closer}\n\n", is_user_content=False)]
        knows_how = "enable_thinking" in self._template.source or "thinking" in self._template.source
        return [] if knows_how else [Segment(f"{tags.opener}\n\n{tags.closer}\n\n", is_user_content=False)]

    def _begun(self, last: Message, segments: tuple[Segment, ...]) -> list[Segment]:
        """The beginning of the answer."""
        tags, begun = self.dialect.thinking, list[Segment]()
        has_opened = self._has_opened(segments)
        if tags is not None and not self.dialect.is_harmony:
            if last.reasoning:
                begun += [] if has_opened else [Segment(f"{tags.opener}\n", is_user_content=False)]
                begun += [Segment(last.reasoning, is_user_content=True)]
            if last.content and (has_opened or last.reasoning):
                begun += [Segment(f"\n{tags.closer}\n\n", is_user_content=False)]
        elif self.dialect.answer_opener:
            begun += [Segment(self.dialect.answer_opener, is_user_content=False)]
        return [*begun, *([Segment(last.content, is_user_content=True)] if last.content else [])]

    def _has_opened(self, segments: tuple[Segment, ...]) -> bool:
        """Whether the prompt ends in the middle of thinking."""
        tags = self.dialect.thinking
        if tags is None or self.dialect.is_harmony:
            return False
        for segment in reversed(segments):
            if not segment.is_user_content:
                opened, closed = segment.text.rfind(tags.opener), segment.text.rfind(tags.closer)
                if opened >= 0 or closed >= 0:
                    return opened > closed and not segment.text[opened + len(tags.opener) :].strip()
                if segment.text.strip():
                    return False
        return False

    # The answer's form.

    def _constraint(self, ask: ChatAsk, tools: tuple[Tool, ...], *, thinks: bool) -> MakeConstraint:
        """What is wrong with it is found now, before anything is computed. Schemas that no grammar can follow do not
        count where nobody insists on them."""
        loose = tuple(tool if tool.is_strict else loosened(tool) for tool in tools)
        for offered in (tools, loose):
            form = self._form(ask, offered, thinks=thinks)
            make_constraint = partial(start_form, form, self._grammars, self._vocabulary)
            try:
                make_constraint()
            except UsageError:
                if offered == loose:
                    raise
            else:
                break
        return make_constraint

    def _form(self, ask: ChatAsk, tools: tuple[Tool, ...], *, thinks: bool) -> Form:
        rules, calls, grammar = LarkRules(self._vocabulary), self.dialect.calls, ask.grammar
        thinking, may_think = self.dialect.thinking, ask.thinking.is_on is not False
        form = Form(thinking, thinks and may_think, ask.thinking.budget_tokens if thinking is not None else None)
        if not tools and grammar is None:
            return form
        many = ask.calls_in_parallel
        if tools and ask.tool_choice == "auto" and grammar is None:
            rest = (
                {} if calls.begins_bare else {calls.openers[0]: rules.grammar(calls.rules(rules, tools, is_many=many))}
            )
            return replace(form, calls=rest)
        choices = list[str]()
        if tools:
            opener = "" if calls.begins_bare else rules.text(calls.openers[0])
            choices.append(f"{opener} {calls.rules(rules, tools, is_many=many)}")
        if grammar is not None and ask.tool_choice != "required":
            body = body_of(rules, grammar)
            if body is None:
                if tools:
                    raise UsageError(
                        f"a grammar of kind {grammar.kind} cannot be had together with tools: leave one out"
                    )
                return replace(form, grammar=lark_of(grammar))
            opener = rules.text(self.dialect.answer_opener) if self.dialect.answer_opener else ""
            choices.append(f"{opener} {body}")
        start = f"({' | '.join(choices)})"
        if self.dialect.is_harmony and thinking is not None and not (may_think and ask.thinking.budget_tokens != 0):
            return replace(form, grammar=rules.grammar(start), thinking=None, budget_tokens=None)
        if self.dialect.is_harmony and thinking is not None:
            thought = f"{rules.text(thinking.opener)} {rules.until(thinking.closer)} {rules.text('<|start|>assistant')}"
            return replace(form, grammar=rules.grammar(f"({thought})? {start}"), is_whole=True)
        gap = rules.rule("/\\n{1,2}/") + "?" if thinking is not None else ""
        return replace(form, grammar=rules.grammar(f"{gap} {start}"))

    def _is_suspect(self, text: str) -> bool:
        return any(True for _ in self._vocabulary.special_spans(text))

    def _is_token(self, text: str) -> bool:
        return len(self._vocabulary.tokenize(text, add_special=False, parse_special=True)) == 1


def _chosen(ask: ChatAsk, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    """Those that the answer may call."""
    if ask.tool_choice == "required" and not tools:
        raise UsageError("a tool must be called, but there is none")
    if not ask.tool_name or ask.tool_choice != "required":
        return tools
    chosen = tuple(tool for tool in tools if tool.name == ask.tool_name)
    if not chosen:
        raise UsageError(f"the tool {ask.tool_name[:80]!r} must be called, but is not among the {len(tools)} tools")
    return chosen
