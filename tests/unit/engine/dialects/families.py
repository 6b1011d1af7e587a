"""Small chat templates, each with tools in one family's form: the form is the family's, the template is not."""

# ruff: noqa: E501
from dataclasses import dataclass

_HEAD = (
    "{%- if tools %}<sys>{% for t in tools %}{{ t | tojson }}\n{% endfor %}</sys>{% endif %}{%- for m in messages %}"
)
_OTHERS = "{%- else %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endif %}{% endfor %}"
_TAIL = "{% if add_generation_prompt %}<assistant>{% endif %}"
_ASK = "{%- if m.role == 'assistant' %}<assistant>"
_THOUGHT = "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"


def _template(calls: str, thought: str = "", end: str = "<end>") -> str:
    return f"{_HEAD}{_ASK}{thought}{{{{ m.content }}}}{calls}{end}{_OTHERS}{_TAIL}"


_LOOP = "{% for c in m.tool_calls or [] %}{% set f = c.function %}"

HERMES = _template(
    _LOOP + "\n<tool_call>\n{\"name\": \"{{ f.name }}\", \"arguments\": {{ f.arguments | tojson }}}\n</tool_call>{% endfor %}",
    _THOUGHT,
)  # fmt: skip
QWEN_XML = _template(
    _LOOP + "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
    "{{ v if v is string else v | tojson }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% endfor %}",
    _THOUGHT,
)
GLM = _template(
    _LOOP + "\n<tool_call>{{ f.name }}\n{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key>\n"
    "<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}",
    _THOUGHT,
)
LLAMA = _template(
    "{% for c in m.tool_calls or [] %}{% set f = c.function %}{% if not loop.first %}; {% else %}<|python_tag|>{% endif %}"
    "{\"name\": \"{{ f.name }}\", \"parameters\": {{ f.arguments | tojson }}}{% endfor %}"
)  # fmt: skip
MISTRAL = _template(
    "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{% set f = c.function %}"
    "{\"name\": \"{{ f.name }}\", \"arguments\": {{ f.arguments | tojson }}, \"id\": \"{{ c.id }}\"}"
    "{% if not loop.last %}, {% endif %}{% endfor %}]{% endif %}"
)  # fmt: skip
MISTRAL_NAMED = _template(_LOOP + "[TOOL_CALLS]{{ f.name }}[ARGS]{{ f.arguments | tojson }}{% endfor %}")
DEEPSEEK = _template(
    "{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}{% set f = c.function %}"
    "{% if not loop.first %}\n{% endif %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ f.name }}\n```json\n"
    "{{ '' + f.arguments }}\n```<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{% endif %}",
    _THOUGHT,
)
DEEPSEEK_31 = _template(
    "{% if m.tool_calls %}<｜tool▁calls▁begin｜>{% for c in m.tool_calls %}{% set f = c.function %}"
    "<｜tool▁call▁begin｜>{{ f.name }}<｜tool▁sep｜>{{ '' + f.arguments }}<｜tool▁call▁end｜>{% endfor %}"
    "<｜tool▁calls▁end｜>{% endif %}",
    _THOUGHT,
)
COMMAND = _template(
    "{% if m.tool_calls %}<|START_ACTION|>[\n{% for c in m.tool_calls %}{% set f = c.function %}"
    "    {\"tool_call_id\": \"{{ loop.index0 }}\", \"tool_name\": \"{{ f.name }}\", \"parameters\": {{ f.arguments | tojson }}}"
    "{% if not loop.last %},\n{% endif %}{% endfor %}\n]<|END_ACTION|>{% endif %}",
    "{% if m.reasoning_content %}<|START_THINKING|>{{ m.reasoning_content }}<|END_THINKING|>{% endif %}",
)  # fmt: skip
HARMONY = (
    _HEAD
    + _ASK
    + "{% if m.thinking %}<|channel|>analysis<|message|>{{ m.thinking }}<|end|><|start|>assistant{% endif %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}<|channel|>commentary to=functions.{{ f.name }} "
    "<|constrain|>json<|message|>{{ f.arguments | tojson }}{% else %}<|channel|>final<|message|>{{ m.content }}{% endif %}"
    "<end>" + _OTHERS + _TAIL
)
NONE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


@dataclass(frozen=True)
class Family:
    template: str
    thinks: bool = True
    calls_many: bool = True
    says_with_calls: bool = True


FAMILIES = {
    "hermes": Family(HERMES),
    "qwen xml": Family(QWEN_XML),
    "glm": Family(GLM),
    "llama": Family(LLAMA, thinks=False),
    "mistral": Family(MISTRAL, thinks=False),
    "mistral named": Family(MISTRAL_NAMED, thinks=False),
    "deepseek": Family(DEEPSEEK),
    "deepseek 3.1": Family(DEEPSEEK_31),
    "command": Family(COMMAND),
    "harmony": Family(HARMONY, calls_many=False, says_with_calls=False),
}
