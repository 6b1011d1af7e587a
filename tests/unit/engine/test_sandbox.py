"""A hostile chat template ends in an error, soon and without filling the memory."""

import sys
import time
import tracemalloc
from datetime import datetime

import pytest

from tpi.engine import sandbox
from tpi.engine.chat import ChatTemplate
from tpi.engine.turns import Message
from tpi.errors import ModelFileError

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
    "output": "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x }}{% endfor %}",
}
OTHER = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'] }}",
    "change": "{{ messages.append(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "type": "{{ 1 + 'a' }}",
    "include": "{% include '/etc/passwd' %}",
}


def render(source: str) -> str:
    segments = ChatTemplate(source).render((Message("user", "hi"),), lambda _: False)
    return "".join(segment.text for segment in segments)


@pytest.mark.parametrize("name", [*MEMORY, *OTHER])
def test_hostile_template(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError) as caught:
            render((MEMORY | OTHER)[name])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100e6
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% for i in range(99999) %}{% set x = range(99999) | list %}{% endfor %}",
    ],
    ids=["loops", "macros", "lists"],
)
def test_endless_template(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 0.3)
    before, trace = time.monotonic(), sys.gettrace()
    with pytest.raises(ModelFileError, match=r"more than 0\.3 seconds"):
        render(source)
    assert time.monotonic() - before < 3
    assert sys.gettrace() is trace


def test_what_templates_need_still_works() -> None:
    assert render("{{ {'a': 'ü<', 'b': [1]} | tojson }}") == '{"a": "ü<", "b": [1]}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}") == '{\n  "a": 2,\n  "b": 1\n}'
    assert render("{{ 'a\n\nb' | indent(2) }}") == "a\n\n  b"
    assert render("{{ ['a', 'b'] | join(', ') ~ 1 ~ none }}") == "a, b1None"
    assert render("{{ messages | map(attribute='role') | list }}") == "['user']"
    assert render("{{ 'aXa'.replace('X', 'b') | replace('a', 'c', 1) }}{{ '-'.join(['x', 'y']) }}") == "cbax-y"
    assert render("{% for m in messages %}{% break %}{% endfor %}{{ undefined_name }}") == ""
    assert render("{{ (7 + 2 * 3) % 5 }}{{ 'a' * 3 }}{{ [1] + [2] }}{{ 2 ** 10 }}") == "3aaa[1, 2]1024"
    assert render("{{ messages[0].get('content').split('h')[1] }}") == "i"


def test_clock() -> None:
    plain = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}", clock=lambda: datetime(2026, 1, 2))
    assert plain.render((Message("user", "hi"),), lambda _: False)[0].text == "2026-01-02"
