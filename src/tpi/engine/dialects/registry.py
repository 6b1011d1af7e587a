"""Which dialect a model speaks, by the text of its chat template. Pure."""

from collections.abc import Callable

from tpi.engine.dialects.calls import CallFormat
from tpi.engine.dialects.dialect import Dialect, Tags
from tpi.engine.dialects.harmony import HarmonyCalls
from tpi.engine.dialects.jsoncalls import COMMAND, HERMES, LLAMA, MISTRAL_ARRAY
from tpi.engine.dialects.namedcalls import DeepSeekCalls, MistralCalls
from tpi.engine.dialects.taggedcalls import GLM, QWEN_XML

_THINK = Tags("<think>", "</think>")
_TAGS = (_THINK, Tags("[THINK]", "[/THINK]"), Tags("<|START_THINKING|>", "<|END_THINKING|>"))
_COMMAND_SILENT = ("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>")
_HARMONY_SILENT = ("<|constrain|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|return|>")
_ANALYSIS = Tags("<|channel|>analysis<|message|>", "<|end|>", "<|end|><|start|>assistant")

GENERIC = Dialect(HERMES)
"""For models whose templates know no tools: they are told of them in a system text (``toolprompt``)."""

_FORMATS: tuple[tuple[Callable[[str], bool], Callable[[str], CallFormat]], ...] = (
    (lambda text: "<｜tool▁calls▁begin｜>" in text, lambda text: DeepSeekCalls("```json" in text)),
    (lambda text: "[TOOL_CALLS]" in text, lambda text: MistralCalls() if "[ARGS]" in text else MISTRAL_ARRAY),
    (lambda text: "<|START_ACTION|>" in text, lambda _: COMMAND),
    (lambda text: "<tool_call>" in text and "<arg_key>" in text, lambda _: GLM),
    (lambda text: "<tool_call>" in text and "<function=" in text, lambda _: QWEN_XML),
    (lambda text: "<tool_call>" in text, lambda _: HERMES),
    (lambda text: "<|python_tag|>" in text or "ipython" in text, lambda _: LLAMA),
)


def find_dialect(template: str, tokens: Callable[[str], bool]) -> Dialect:
    """``tokens`` tells whether a text is a token of the model: what is no word of its template may still be how it
    thinks."""
    if "<|channel|>" in template and "<|message|>" in template:
        return Dialect(HarmonyCalls(), _ANALYSIS, _HARMONY_SILENT, "<|channel|>final<|message|>", is_harmony=True)
    thinking = next((tags for tags in _TAGS if tags.closer in template), None)
    if thinking is None and tokens(_THINK.opener) and tokens(_THINK.closer):
        thinking = _THINK
    for is_it, make in _FORMATS:
        if is_it(template):
            calls = make(template)
            if calls is COMMAND:
                return Dialect(calls, thinking, _COMMAND_SILENT, "<|START_RESPONSE|>")
            return Dialect(calls, thinking, short_ids="[TOOL_CALLS]" in template)
    return Dialect(HERMES, thinking)
