"""A Jinja environment for chat templates out of model files: what Hugging Face offers them, within bounds.

A template is a stranger's program. Jinja's sandbox keeps it from Python's internals; this module bounds what it can
use: only known filters and string methods, and so many bytes and seconds (``templatebounds``). Master only; each
rendering stays on the calling thread.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tpi.engine.templatebounds import (
    MAX_CHARS,
    MAX_ITEMS,
    Allotment,
    bounded_join,
    check_size,
    format_percent,
    format_text,
    indent,
    join,
    replace,
    round_number,
    split,
    split_from_right,
    split_lines,
    text_of,
    to_json,
    to_list,
    total,
)

_MAX_INTEGER_BITS = 256
# fmt: off
_FILTERS = (
    "abs", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last", "length",
    "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr",
)
_TEXT_FILTERS = ("capitalize", "e", "escape", "lower", "safe", "string", "title", "trim", "upper")
_LIST_FILTERS = ("sort", "unique")
_OWN_FILTERS: dict[str, Callable[..., Any]] = {
    "format": lambda text, *values: format_percent(text_of(text), values), "indent": indent, "join": join,
    "list": to_list, "replace": replace, "round": round_number, "sum": total, "tojson": to_json,
}
_STRING_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper",
)
# fmt: on


_OWN_METHODS: dict[str, Callable[..., Any]] = {
    "join": lambda text, parts: join(parts, text),
    "replace": replace,
    "rsplit": split_from_right,
    "split": split,
    "splitlines": split_lines,
}


class TemplateRefusal(Exception):
    """The template itself called ``raise_exception``."""


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Holds no state between renderings but compiled code.

    Args:
        clock: the local time that ``strftime_now`` formats.
    """

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, _Generation],
        )
        self.code_generator_class = _BoundedGenerator
        self.allotment = allotment = Allotment()
        self.filters = {name: allotment.bounded(FILTERS[name]) for name in _FILTERS}
        self.filters |= {name: allotment.bounded(FILTERS[name], text_of) for name in _TEXT_FILTERS}
        self.filters |= {name: allotment.bounded(FILTERS[name], to_list) for name in _LIST_FILTERS}
        self.filters |= {name: allotment.bounded(make) for name, make in _OWN_FILTERS.items()}
        self.finalize = text_of
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: clock().strftime(str(pattern)[:256]),
        }

    def concat(self, parts: Iterable[str]) -> str:
        """What a template, a macro or a block gives."""
        return self.allotment.made(bounded_join(parts))

    def bounded_concat(self, parts: Iterable[Any]) -> str:
        """The ``~`` operator."""
        return self.concat(map(text_of, parts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Strings have only the methods above: others pad a text to any width."""
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` without widths, and without what it can reach by attributes."""
        if super().wrap_str_format(value) is None:
            return None
        if value.__name__ != "format":
            raise SecurityError("str.format_map is not available in chat templates")
        return partial(format_text, value.__self__)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Sends the string methods that can make long texts through their bounded versions."""
        owner = getattr(__obj, "__self__", None)
        own = _OWN_METHODS.get(getattr(__obj, "__name__", "")) if isinstance(owner, str) else None
        result = super().call(__context, __obj if own is None else partial(own, owner), *args, **kwargs)
        return (
            __self.allotment.made_nested(result) if isinstance(result, list | dict) else __self.allotment.made(result)
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuses operations with huge results before they are computed."""
        if operator == "%" and isinstance(left, str):
            return self.allotment.made(format_percent(left, right))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            check_size(bits, _MAX_INTEGER_BITS, "an integer of")
        elif operator == "*":
            sized, factor = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(factor, int):
                check_size(len(sized) * factor, _limit(sized))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            check_size(len(left) + len(right), _limit(left))
        return self.allotment.made(super().call_binop(context, operator, left, right))


def render_within_bounds(template: Template, variables: Mapping[str, Any]) -> str:
    """The template's text.

    Raises:
        TemplateRefusal: it called ``raise_exception``.
        Exception: whatever else goes wrong in a stranger's program, ``SecurityError`` for a bound included.
    """
    environment = template.environment
    assert isinstance(environment, ChatEnvironment)
    with environment.allotment.of_rendering(variables):
        return template.render(variables)


class _BoundedGenerator(CodeGenerator):
    """Compiles ``a ~ b`` to a bounded join, counts lists and slices, and looks at the clock in every body of a loop or
    macro; Jinja offers no hook for these."""

    def blockvisit(self, body: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.allotment.tick()")
        super().blockvisit(body, frame)

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self._count("made_nested", super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        # Names that values are assigned to are a tuple, too.
        if node.ctx == "load":
            self._count("made_nested", super().visit_Tuple, node, frame)
        else:
            super().visit_Tuple(node, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self._count("made_nested", super().visit_Dict, node, frame)

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        if isinstance(node.arg, nodes.Slice):
            self._count("made", super().visit_Getitem, node, frame)
        else:
            super().visit_Getitem(node, frame)

    def _count(self, how: str, visit: Callable[[Any, Frame], None], node: nodes.Expr, frame: Frame) -> None:
        self.write(f"environment.allotment.{how}(")
        visit(node, frame)
        self.write(")")

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.bounded_concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Generation(Extension):
    """``{% generation %} … {% endgeneration %}`` marks answers for training; here it only passes its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _limit(value: object) -> int:
    return MAX_CHARS if isinstance(value, str) else MAX_ITEMS


def _raise_exception(message: object = "") -> None:
    raise TemplateRefusal(text_of(message))
