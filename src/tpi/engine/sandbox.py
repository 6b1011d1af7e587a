"""A Jinja environment for chat templates out of model files: what Hugging Face offers them, within bounds.

A template is a stranger's program. Jinja's sandbox keeps it from Python's internals; this module bounds what it can
use: only known filters and string methods, no text above ``MAX_CHARS``, no longer than ``MAX_SECONDS``. Master only;
each rendering stays on the calling thread, which is traced meanwhile for the clock.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARS = 1 << 23
"""The longest text that a template may make, on the way or as its result."""
MAX_SECONDS = 5.0

_MAX_ITEMS = 1 << 20
_MAX_INTEGER_BITS = 256
# fmt: off
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr",
    "reverse", "round", "safe", "select", "selectattr", "sort", "string", "sum", "title", "trim",
    "unique", "upper",
)
_STRING_METHODS = (
    "capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join",
    "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper",
)
# fmt: on


class TemplateRefusal(Exception):
    """The template itself called ``raise_exception``."""


def _bounded_join(parts: Iterable[str]) -> str:
    """``"".join`` that stops at ``MAX_CHARS``."""
    kept: list[str] = []
    n_chars = 0
    for part in parts:
        n_chars += len(part)
        _check_size(n_chars)
        kept.append(part)
    return "".join(kept)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. Holds no state between renderings but compiled code.

    Args:
        clock: the local time that ``strftime_now`` formats.
    """

    concat = staticmethod(_bounded_join)
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, clock: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, _Generation],
        )
        self.code_generator_class = _BoundedGenerator
        self.filters = {name: FILTERS[name] for name in _FILTERS}
        self.filters |= {"tojson": _to_json, "join": _join, "replace": _replace, "indent": _indent}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda pattern: clock().strftime(str(pattern)[:256]),
        }

    def bounded_concat(self, parts: Iterable[Any]) -> str:
        """The ``~`` operator."""
        return _bounded_join(map(str, parts))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Strings have only the methods above: others pad a text to any width."""
        if isinstance(obj, str) and attr not in _STRING_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` is not available: it pads to any width, too."""
        if super().wrap_str_format(value) is not None:
            raise SecurityError("str.format is not available in chat templates")
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Sends the string methods that can make long texts through their bounded versions."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            if getattr(__obj, "__name__", "") == "replace":
                return _replace(owner, *args, **kwargs)
            if getattr(__obj, "__name__", "") == "join":
                return _join(args[0] if args else (), owner)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuses operations with huge results before they are computed."""
        if operator == "%" and isinstance(left, str):
            raise SecurityError("formatting with % is not available in chat templates")
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 1) if operator == "**" else left.bit_length() + right.bit_length()
            _check_size(bits, _MAX_INTEGER_BITS, "an integer of")
        elif operator == "*":
            sized, factor = (left, right) if hasattr(left, "__len__") else (right, left)
            if hasattr(sized, "__len__") and isinstance(factor, int):
                _check_size(len(sized) * factor, _limit(sized))
        elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check_size(len(left) + len(right), _limit(left))
        return super().call_binop(context, operator, left, right)


def render_within_bounds(template: Template, variables: Mapping[str, Any]) -> str:
    """The template's text.

    Raises:
        TemplateRefusal: it called ``raise_exception``.
        Exception: whatever else goes wrong in a stranger's program, ``SecurityError`` for a bound included.
    """
    with _time_limit(time.monotonic() + MAX_SECONDS):
        return template.render(variables)


@contextmanager
def _time_limit(deadline: float) -> Iterator[None]:
    """Raises ``SecurityError`` in template code that still runs at the deadline (a ``time.monotonic`` value)."""

    def check_line(frame: FrameType, event: str, argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")
        return check_line

    def check_call(frame: FrameType, event: str, argument: Any) -> Any:
        return check_line(frame, event, argument) if frame.f_code.co_filename == "<template>" else None

    previous = sys.gettrace()
    sys.settrace(check_call)
    try:
        yield
    finally:
        sys.settrace(previous)


class _BoundedGenerator(CodeGenerator):
    """Compiles ``a ~ b`` to a bounded join; Jinja offers no hook for that operator."""

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


def _check_size(size: int, limit: int = MAX_CHARS, what: str = "a text or list of") -> None:
    if size > limit:
        raise SecurityError(f"it makes {what} {size:,}, the limit is {limit:,}")


def _limit(value: object) -> int:
    return MAX_CHARS if isinstance(value, str) else _MAX_ITEMS


def _raise_exception(message: object = "") -> None:
    raise TemplateRefusal(str(message))


def _to_json(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    sort_keys: bool = False,
    separators: object = None,  # accepted and left out: any text could stand in them
) -> str:
    """JSON without HTML's escapes, as Hugging Face has it."""
    _check_size(indent or 0, 64, "an indent of")
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)
    _check_size(len(text))
    return text


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = [str(item[attribute] if attribute is not None else item) for item in value]
    _check_size(sum(map(len, items)) + len(d) * len(items))
    return d.join(items)


def _replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, old, new = str(text), str(old), str(new)
    n_found = whole.count(old) if count is None or count < 0 else min(whole.count(old), count)
    _check_size(len(whole) + n_found * (len(new) - len(old)))
    return whole.replace(old, new, n_found)


def _indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = str(text).split("\n")
    prefix = width if isinstance(width, str) else " " * min(width, 64)
    _check_size(len(str(text)) + len(prefix) * len(lines))
    indented = (prefix + line if line or blank else line for line in lines[1:])
    return "\n".join([prefix + lines[0] if first else lines[0], *indented])
