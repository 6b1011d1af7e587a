"""A hostile chat template ends in an error, soon and without filling the memory."""

import json
import resource
import subprocess
import sys
import time
from datetime import datetime

import pytest

from tests.unit.engine import templates
from tpi.engine import templatebounds
from tpi.engine.chat import ChatTemplate
from tpi.engine.templateinput import TemplateInput
from tpi.engine.turns import Message
from tpi.errors import ModelFileError, UsageError

MEMORY = {
    "repeated": "{{ 'a' * 1000000000 }}",
    "repeated list": "{{ ([1] * 1000000000) | length }}",
    "power": "{{ 10 ** 1000000000 }}",
    "nested power": "{{ 9 ** 9 ** 9 }}",
    "padded": "{{ 'a'.ljust(1000000000) }}",
    "zeros": "{{ 'a'.zfill(1000000000) }}",
    "tabs": "{{ '\t'.expandtabs(1000000000) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent of much": "{% set x = 'a' * 999999 %}{{ ('%s' * 9) % (x, x, x, x, x, x, x, x, x) }}",
    "format of much": "{% set x = 'a' * 999999 %}{{ ('{0}' * 99).format(x) }}",
    "format filter": "{{ '%1000000000d' | format(1) }}",
    "centred": "{{ 'a' | center(1000000000) }}",
    "indented": "{{ 'a\nb' | indent(1000000000) | length }}{{ 'x' * 9999999 }}",
    "indented json": "{{ [1] | tojson(indent=1000000000) }}",
    "range": "{{ range(1000000000) | list }}",
    "words": "{{ lipsum(100000000) }}",
    "doubled +": "{% set n = namespace(x='aa') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled ~": "{% set n = namespace(x='aa') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubled list": "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "squared": "{% set n = namespace(x=9) %}{% for i in range(40) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "doubled block": "{% set n = namespace(x='aa') %}{% for i in range(40) %}"
    "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "replaced": "{% set x = 'a' * 1000000 %}{{ x | replace('a', x) }}",
    "replaced by method": "{% set x = 'a' * 1000000 %}{{ x.replace('a', x) }}",
    "joined": "{% set x = 'a' * 1000000 %}{{ range(100000) | join(x) }}",
    "joined by method": "{% set x = 'a' * 1000000 %}{{ x.join(['a'] * 100000) }}",
    "grown list": "{% set n = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set n.l = n.l + ['a' * 9999 ~ i] %}{% endfor %}",
    "grown block": "{% set n = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set x %}{{ 'a' * 99999 }}{{ i }}{% endset %}{% set n.l = [n.l, x] %}{% endfor %}",
    "chain": "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% set n.l = [n.l] %}{% endfor %}",
    "tree": "{% set n = namespace(l=[]) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
    "slices": "{% set x = 'a' * 999999 %}{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [x[i:]] %}{% endfor %}",
    "upper": "{% set x = 'a' * 999999 %}{% set n = namespace(l=[]) %}{% for i in range(9999) %}"
    "{% set n.l = n.l + [(x ~ i) | upper] %}{% endfor %}",
    "lists": "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    "written list": "{% set x = 'a' * 999999 %}{{ [x] * 99999 }}",
    "written view": "{% set x = 'a' * 999999 %}{{ {'a': [x] * 99999}.values() }}",
    "joined lists": "{% set x = 'a' * 999999 %}{{ [[x] * 9999] | join }}",
    "text of a list": "{% set x = 'a' * 999999 %}{{ [x] * 99999 | string | length }}",
    "big json": "{% set x = 'a' * 999999 %}{{ ([x] * 99999) | tojson }}",
    "wide json": "{% set n = namespace(l=['a'] * 999) %}{% for i in range(500) %}{% set n.l = [n.l] %}{% endfor %}"
    "{{ n.l | tojson(indent=16) }}",
    "characters": "{{ ('😀a' * 999999) | list | length }}",
    "sorted": "{{ ('😀a' * 999999) | sort | length }}",
    "parts": "{{ ('a ' * 999999).split() | length }}",
    "parts from the right": "{{ ('a ' * 999999).rsplit(' ') | length }}",
    "lines": "{{ ('a\n' * 999999).splitlines() | length }}",
    "sum of lists": "{{ ([[1] * 99999] * 9999) | sum(start=[]) | length }}",
    "rounded": "{{ 10 | round(-1000000000) }}",
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
}
OTHER = {
    "format of attributes": "{{ '{0.__class__}'.format(messages) }}",
    "format of a map": "{{ '{a}'.format_map({'a': 1}) }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'] }}",
    "change": "{{ messages.append(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "type": "{{ 1 + 'a' }}",
    "include": "{% include '/etc/passwd' %}",
}


def render(source: str) -> str:
    segments = ChatTemplate(source).render(TemplateInput((Message("user", "hi"),)), lambda _: False)
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("name", OTHER)
def test_forbidden_template(name: str) -> None:
    with pytest.raises((ModelFileError, UsageError)) as caught:
        render(OTHER[name])
    assert "\n" not in str(caught.value)


def test_hostile_templates_in_a_process_of_their_own() -> None:
    """One after the other, with the real bounds: memory is the process's."""
    code = "from tests.unit.engine.test_sandbox import report_peaks; report_peaks()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = json.loads(result.stdout)
    assert list(grown) == list(MEMORY)
    assert max(grown.values()) < 80, grown


def report_peaks() -> None:
    """By how many MB each template has raised the process's peak."""
    grown = {}
    for name, source in MEMORY.items():
        before_s, before_kb = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises((ModelFileError, UsageError)):
            render(source)
        assert time.monotonic() - before_s < templatebounds.MAX_SECONDS + 1, name
        grown[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) // 1024
    print(json.dumps(grown))


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    ],
    ids=["loops", "macros"],
)
def test_endless_template(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templatebounds, "MAX_SECONDS", 0.3)
    before = time.monotonic()
    with pytest.raises(UsageError, match=r"more than 0\.3 seconds"):
        render(source)
    assert time.monotonic() - before < 3


def test_what_templates_need_still_works() -> None:
    assert render("{{ {'a': 'ü<', 'b': [1]} | tojson }}") == '{"a": "ü<", "b": [1]}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}") == '{\n  "a": 2,\n  "b": 1\n}'
    assert render("{{ 'a\n\nb' | indent(2) }}") == "a\n\n  b"
    assert render("{{ ['a', 'b'] | join(', ') ~ 1 ~ none }}") == "a, b1None"
    assert render("{{ messages | map(attribute='role') | list }}") == "['user']"
    assert render("{{ 'aXa'.replace('X', 'b') | replace('a', 'c', 1) }}{{ '-'.join(['x', 'y']) }}") == "cbax-y"
    assert render("{{ '{}:{b} {{}}'.format('x', b=1) }}{{ '%02d %s %%' % (7, 'y') }}{{ '%s' | format(2) }}") == (
        "x:1 {}07 y %2"
    )
    assert render("{% for m in messages %}{% break %}{% endfor %}{{ undefined_name }}") == ""
    assert render("{{ (7 + 2 * 3) % 5 }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}") == "3aaa[1, 2]1024"
    assert render("{{ messages[0].get('content').split('h')[1] }}") == "i"


def test_a_long_chat_is_within_the_bounds() -> None:
    """As long as what is tokenized at once, through a template that makes some copies of everything."""
    source = (
        "{% for m in messages %}{% set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
        "{{ '<' + m.role + '>\n' + c | trim + '\n' }}{% endfor %}"
    )
    messages = [Message("user", "a long story 😀 " * 1000)] * 250
    before = time.process_time()
    segments = ChatTemplate(source).render(TemplateInput(messages), lambda _: False)
    assert sum(segment.is_user_content for segment in segments) == 250
    assert time.process_time() - before < 5


def test_a_normal_chat_takes_no_time() -> None:
    messages = [Message("system", "Be kind."), *[Message("user", "Hi?"), Message("assistant", "Hello!")] * 8]
    template = ChatTemplate(templates.LLAMA3)
    times = []
    for _ in range(20):
        before = time.process_time()
        template.render(TemplateInput(messages), lambda _: False)
        times.append(time.process_time() - before)
    assert min(times) < 0.01


def test_clock() -> None:
    plain = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", clock=lambda: datetime(2026, 1, 2))
    assert plain.render(TemplateInput((Message("user", "hi"),)), lambda _: False)[0].text == "2026-01-02"
