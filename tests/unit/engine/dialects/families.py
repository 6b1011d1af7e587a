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
    "{% if not loop.last %}{{ ',\n' }}{% endif %}{% endfor %}{{ '\n' }}]<|END_ACTION|>{% endif %}",
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
_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_KEYWORDS = (
    "{{ f.name }}({% for k, v in f.arguments | items %}{{ k }}="
    "{% if v is string %}\"{{ v.replace('\\\\', '\\\\\\\\').replace('\"', '\\\\\"') }}\""
    "{% else %}{{ v if v is boolean else v | tojson }}{% endif %}{{ ', ' if not loop.last }}{% endfor %})"
)
_SOME = "{% if m.tool_calls %}"


def _listed(opener: str, closer: str, call: str = _JSON, thought: str = "", joint: str = ", ") -> str:
    opener, closer = (text.replace("\n", "{{ '\\n' }}") for text in (opener, closer))
    joined = _LOOP + "{{ joint if not loop.first }}".replace("joint", repr(joint)) + call + "{% endfor %}"
    return _template(f"{_SOME}{opener}{joined}{closer}{{% endif %}}", thought)


def _gemma(opener: str, closer: str, quote: str, thought: str = "") -> str:
    value = (
        "{% macro w(v) %}{% if v is string %}Q{{ v }}Q{% elif v is mapping %}{ {{- fields(v) -}} }{% elif v is none %}"
        "null{% elif v is number %}{{ v | tojson }}{% else %}[{% for x in v %}{{ w(x) }}{{ ',' if not loop.last }}{% endfor %}]"
        "{% endif %}{% endmacro %}{% macro fields(v) %}{% for k, x in v | dictsort %}{{ k }}:{{ w(x) }}"
        "{{ ',' if not loop.last }}{% endfor %}{% endmacro %}"
    ).replace("Q", quote)
    call = f"{opener}call:{{{{ f.name }}}}{{ {{{{- fields(f.arguments) -}}}} }}{closer}"
    return value + _template(f"{_LOOP}{call}{{% endfor %}}", thought)


SEED = _template(
    _LOOP + "\n<seed:tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>"
    "{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}</function>\n</seed:tool_call>{% endfor %}",
    _THOUGHT.replace("think>", "seed:think>"),
)
GLM_TIGHT = _template(
    _LOOP + "<tool_call>{{ f.name }}{% for k, v in f.arguments | items %}<arg_key>{{ k }}</arg_key><arg_value>"
    "{{ v if v is string else v | tojson }}</arg_value>{% endfor %}</tool_call>{% endfor %}",
    _THOUGHT,
)
MINIMAX = _template(
    "{% if m.tool_calls %}\n<minimax:tool_call>\n"
    + _LOOP
    + '<invoke name="{{ f.name }}">\n{% for k, v in f.arguments | items %}'
    '<parameter name="{{ k }}">{{ v if v is string else v | tojson }}</parameter>\n{% endfor %}</invoke>\n{% endfor %}'
    "</minimax:tool_call>{% endif %}",
    _THOUGHT,
)
DSML = _template(
    "{% if m.tool_calls %}\n<｜DSML｜function_calls>\n" + _LOOP + '<｜DSML｜invoke name="{{ f.name }}">\n'
    "{% for k, v in f.arguments | items %}<｜DSML｜parameter name=\"{{ k }}\" string=\"{{ 'true' if v is string else 'false' }}\">"
    "{{ v if v is string else v | tojson }}</｜DSML｜parameter>\n{% endfor %}</｜DSML｜invoke>\n{% endfor %}"
    "</｜DSML｜function_calls>{% endif %}",
    _THOUGHT,
)
KIMI = _template(
    "{% if m.tool_calls %}<|tool_calls_section_begin|>"
    + _LOOP
    + "<|tool_call_begin|>{{ c.id }}<|tool_call_argument_begin|>"
    "{{ f.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>{% endif %}",
    _THOUGHT,
)
GEMMA = _gemma(
    "<|tool_call>",
    "<tool_call|>",
    '<|"|>',
    "{% if m.thinking %}<|channel>thought\n{{ m.thinking }}<channel|>{% endif %}",
)
FUNCTION_GEMMA = _gemma("<start_function_call>", "<end_function_call>", "<escape>")
LFM = _listed("<|tool_call_start|>[", "]<|tool_call_end|>", _KEYWORDS, _THOUGHT)
LLAMA_4 = _listed("<|python_start|>[", "]<|python_end|>", _KEYWORDS)
LLAMA_4_JSON = LLAMA.replace("python_tag", "python_start")
OLMO = _listed("<function_calls>\n", "\n</function_calls>", _KEYWORDS, _THOUGHT, "\n")
APERTUS = _listed(
    "<|tools_prefix|>[", "]<|tools_suffix|>", '{"{{ f.name }}": {{ f.arguments | tojson }}}',
    "{% if m.thinking %}<|inner_prefix|>{{ m.thinking }}<|inner_suffix|>{% endif %}",
)  # fmt: skip
NEMOTRON = _listed("<TOOLCALL>[", "]</TOOLCALL>", thought=_THOUGHT)
HUNYUAN = _listed("<tool_calls>[", "]</tool_calls>", thought=_THOUGHT)
MINIMAX_1 = _listed("<tool_calls>\n", "\n</tool_calls>", joint="\n") + "{# <end_of_sentence> #}"
GRANITE = _listed("<|tool_call|>[", "]", thought=_THOUGHT)
PHI = _listed("<|tool_call|>[", "]<|/tool_call|>")
PHI_NAMED = _listed("functools[", "]")
OLD_COMMAND = _listed(
    "Action:\n```json\n[", "]\n```", '{"tool_name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
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
    "seed": Family(SEED),
    "glm tight": Family(GLM_TIGHT),
    "minimax": Family(MINIMAX),
    "dsml": Family(DSML),
    "kimi": Family(KIMI),
    "gemma": Family(GEMMA),
    "function gemma": Family(FUNCTION_GEMMA, thinks=False),
    "lfm": Family(LFM),
    "llama 4": Family(LLAMA_4, thinks=False),
    "llama 4 json": Family(LLAMA_4_JSON, thinks=False),
    "olmo": Family(OLMO),
    "apertus": Family(APERTUS),
    "nemotron": Family(NEMOTRON),
    "hunyuan": Family(HUNYUAN),
    "minimax 1": Family(MINIMAX_1, thinks=False),
    "granite": Family(GRANITE),
    "phi": Family(PHI, thinks=False),
    "phi named": Family(PHI_NAMED, thinks=False),
    "old command": Family(OLD_COMMAND, thinks=False),
    "harmony": Family(HARMONY, calls_many=False, says_with_calls=False),
}
