"""Which dialect a model speaks, by the text of its chat template. Pure."""

from collections.abc import Callable
from typing import TypeAlias

from tpi.engine.dialects.calls import CallFormat
from tpi.engine.dialects.dialect import Dialect, Tags
from tpi.engine.dialects.gemmacalls import FUNCTION_GEMMA, GEMMA
from tpi.engine.dialects.harmony import HarmonyCalls
from tpi.engine.dialects.invokedcalls import DSML, DSML_CALLS, MINIMAX
from tpi.engine.dialects.jsoncalls import (
    APERTUS,
    COMMAND,
    FUNCTOOLS,
    GRANITE,
    HERMES,
    LINES,
    LISTED,
    LLAMA,
    LLAMA_4_JSON,
    MISTRAL_ARRAY,
    NEMOTRON,
    OLD_COMMAND,
    PHI,
)
from tpi.engine.dialects.namedcalls import DeepSeekCalls, KimiCalls, MistralCalls
from tpi.engine.dialects.pythoncalls import LFM, LLAMA_4, OLMO
from tpi.engine.dialects.taggedcalls import GLM, GLM_TIGHT, QWEN_XML, SEED

_THINK = Tags("<think>", "</think>")
_TAGS = (
    _THINK,
    Tags("[THINK]", "[/THINK]"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("<|inner_prefix|>", "<|inner_suffix|>"),
)
_COMMAND_SILENT = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
_ANSWER_TAGS = ("response", "answer")
"""What some models that think put their words between."""
_HARMONY_SILENT = ("<|constrain|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")
_ANALYSIS = Tags("<|channel|>analysis<|message|>", "<|end|>", "<|end|><|start|>assistant")

GENERIC = Dialect(HERMES)
"""For models whose templates know no tools: they are told of them in a system text (``toolprompt``)."""

_Make: TypeAlias = CallFormat | Callable[[str], CallFormat]
_FORMATS: tuple[tuple[tuple[str, ...], _Make], ...] = (
    (("<｜tool▁calls▁begin｜>",), lambda text: DeepSeekCalls("```json" in text)),
    (("DSML",), lambda text: DSML if "function_calls>" in text else DSML_CALLS),
    (("[TOOL_CALLS]",), lambda text: MistralCalls() if "[ARGS]" in text else MISTRAL_ARRAY),
    (("<|START_ACTION|>",), COMMAND),
    (("<|tool_calls_section_begin|>",), KimiCalls()),
    (("<minimax:tool_call>",), MINIMAX),
    (("<seed:tool_call>",), SEED),
    (("<|tool_call>", "<tool_call|>"), GEMMA),
    (("<start_function_call>",), FUNCTION_GEMMA),
    (("<|tool_call_start|>",), LFM),
    (("<|tool_list_start|>",), LFM),
    (("List of tools: [",), LFM),
    (("<|python_start|>",), lambda text: LLAMA_4_JSON if '"parameters"' in text else LLAMA_4),
    (("<|tools_prefix|>",), APERTUS),
    (("<TOOLCALL>",), NEMOTRON),
    (("<function_calls>",), OLMO),
    (("functools",), FUNCTOOLS),
    (("<|/tool_call|>",), PHI),
    (("<|/tool|>",), PHI),
    (("<tool_calls>",), lambda text: LINES if "<end_of_sentence>" in text else LISTED),
    (("Action:", "```json", "tool_name"), OLD_COMMAND),
    (("<tool_call>", "</arg_key><arg_value>"), GLM_TIGHT),
    (("<tool_call>", "<arg_key>"), GLM),
    (("<tool_call>", "<function="), QWEN_XML),
    (("<tool_call>",), HERMES),
    (("<|tool_call|>",), GRANITE),
    (("<|python_tag|>",), LLAMA),
    (("ipython",), LLAMA),
)
"""By what a template has all of; the first counts."""


def find_dialect(template: str, tokens: Callable[[str], bool]) -> Dialect:
    """``tokens`` tells whether a text is a token of the model: what is no word of its template may still be how it
    thinks."""
    if "<|channel|>" in template and "<|message|>" in template:
        return Dialect(HarmonyCalls(), _ANALYSIS, _HARMONY_SILENT, "<|channel|>final<|message|>", is_harmony=True)
    thinking = next((tags for tags in _TAGS if tags.closer in template), None)
    if thinking is None and tokens(_THINK.opener) and tokens(_THINK.closer):
        thinking = _THINK
    calls = next((make for words, make in _FORMATS if all(word in template for word in words)), HERMES)
    calls = calls(template) if callable(calls) else calls
    if calls is COMMAND:
        return Dialect(calls, thinking, _COMMAND_SILENT, "<|START_RESPONSE|>")
    silent = tuple(
        f"<{slash}{tag}>"
        for tag in _ANSWER_TAGS
        for slash in ("", "/")
        if thinking is _THINK and calls in (HERMES, LISTED, GRANITE) and f"</{tag}>" in template
    )
    return Dialect(
        calls, thinking, silent, short_ids="[TOOL_CALLS]" in template, named_ids=isinstance(calls, KimiCalls),
        example=calls.example if isinstance(calls, DeepSeekCalls) else "",
    )  # fmt: skip
