"""How much one rendering of a chat template may make and how long, and the filters and methods that could make much.

Everything that a template makes is counted, whether it is kept or not; what would be large is refused before it is
made. Knows nothing of Jinja's compiler (``sandbox``). Master only; each rendering counts on its own thread.
"""

import functools
import itertools
import json
import re
import string
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Undefined

MAX_CHARS = 1 << 23
"""The longest text that a template may make, on the way or as its result."""
MAX_BYTES = 1 << 25
"""All that a rendering may make, kept or not, beside ``INPUT_FACTOR`` times what it is handed."""
INPUT_FACTOR = 12
MAX_SECONDS = 5.0
MAX_ITEMS = 1 << 18

_MAX_INDENT = 16
_MAX_DIGITS = 16
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_PERCENT = re.compile(r"%(?:%|[-0+ ]?[0-9]{0,2}(?:\.[0-9]{1,2})?[sdf])")
_NODE_CHARS = 4
"""At least so many characters are counted for whatever stands in a list that is written out."""
_CONTAINERS = (list, tuple, dict)
_EMPTY: dict[str, str] = {}
_SEQUENCES = (list, tuple, type(_EMPTY.items()), type(_EMPTY.keys()), type(_EMPTY.values()))
_WRITABLE = (int, float, dict, Undefined, type(None), *_SEQUENCES)

_Value = TypeVar("_Value")


class Allotment(threading.local):
    """What the rendering on this thread may still make, in bytes, and until when; outside of one, nothing."""

    left_bytes = 0
    _deadline_s = 0.0

    @contextmanager
    def of_rendering(self, variables: Mapping[str, Any]) -> Iterator[None]:
        """Within it, this thread may make as much as a rendering of ``variables`` needs, for ``MAX_SECONDS``."""
        self.left_bytes = MAX_BYTES + INPUT_FACTOR * sum(map(sys.getsizeof, _nested(dict(variables))))
        self._deadline_s = time.monotonic() + MAX_SECONDS
        try:
            yield
        finally:
            self.left_bytes = 0

    def tick(self) -> None:
        """Every part of a template that can be run again calls it."""
        if time.monotonic() > self._deadline_s:
            raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")

    def made(self, value: _Value) -> _Value:
        """Counts a text or list (without what stands in it)."""
        if isinstance(value, str):
            check_size(len(value))
        self._take(sys.getsizeof(value))
        return value

    def made_nested(self, value: _Value) -> _Value:
        """Counts a list or mapping with all lists in it, each as often as it stands there: so none nests into more
        than could be written out."""
        n_bytes = 0
        for part in _nested(value):
            if isinstance(part, _CONTAINERS):
                n_bytes += sys.getsizeof(part)
                if n_bytes > self.left_bytes:
                    break
        self._take(n_bytes)
        return value

    def bounded(self, make: Callable[..., Any], prepare: Callable[[Any], Any] = lambda value: value) -> Any:
        """A filter that counts what it makes, of a value that is ``prepare``d first."""
        place = 1 if hasattr(make, "jinja_pass_arg") else 0

        @functools.wraps(make)
        def filtered(*args: Any, **options: Any) -> Any:
            return self.made(make(*args[:place], prepare(args[place]), *args[place + 1 :], **options))

        return filtered

    def _take(self, n_bytes: int) -> None:
        self.left_bytes -= n_bytes
        if self.left_bytes < 0:
            raise SecurityError(f"it makes more than {MAX_BYTES:,} bytes on the way")
        self.tick()


def check_size(size: int, limit: int = MAX_CHARS, what: str = "a text or list of") -> None:
    if size > limit:
        raise SecurityError(f"it makes {what} {size:,}, the limit is {limit:,}")


def text_of(value: object) -> str:
    """``str`` of what a template can write out.

    Raises:
        SecurityError: it would be too long, or is no value but a part of the template.
    """
    if isinstance(value, str):
        return value
    n_chars = 0
    for part in _nested(value):
        if isinstance(part, str):
            # Escapes take up to ten characters for one.
            n_chars += len(part) * (4 if part.isascii() else 10)
        elif not isinstance(part, _WRITABLE):
            raise SecurityError(f"a {type(part).__name__} cannot be written into a text")
        n_chars += _NODE_CHARS
        check_size(n_chars)
    return str(value)


def bounded_join(parts: Iterable[str], joint: str = "") -> str:
    """``joint.join`` that stops at ``MAX_CHARS``."""
    kept: list[str] = []
    n_chars = 0
    for part in parts:
        n_chars += len(part) + len(joint)
        check_size(n_chars)
        check_size(len(kept), MAX_ITEMS)
        kept.append(part)
    return joint.join(kept)


def to_json(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    sort_keys: bool = False,
    separators: Any = None,
) -> str:
    """JSON without HTML's escapes, as Hugging Face has it."""
    check_size(indent or 0, _MAX_INDENT, "an indent of")
    n_chars = 0
    for part in _nested(value):
        n_chars += (len(part) if isinstance(part, str) else 0) + _NODE_CHARS
        check_size(n_chars)
    if separators is not None:
        separators = tuple(text_of(part) for part in separators)
        check_size(max(map(len, separators)), 8, "a separator of")
    # Nested lists that are indented grow by more than is known here: made in parts, it can be stopped.
    encoder = json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys, separators=separators)
    return bounded_join(encoder.iterencode(value)) if indent else encoder.encode(value)


def join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    return bounded_join((text_of(item[attribute] if attribute is not None else item) for item in value), text_of(d))


def replace(text: Any, old: Any, new: Any, count: int | None = None) -> str:
    whole, old, new = text_of(text), text_of(old), text_of(new)
    n_found = whole.count(old) if count is None or count < 0 else min(whole.count(old), count)
    check_size(len(whole) + n_found * (len(new) - len(old)))
    return whole.replace(old, new, n_found)


def indent(text: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    lines = split(text_of(text), "\n")
    prefix = width if isinstance(width, str) else " " * min(width, 64)
    check_size(len(text_of(text)) + len(prefix) * len(lines))
    indented = (prefix + line if line or blank else line for line in lines[1:])
    return "\n".join([prefix + lines[0] if first else lines[0], *indented])


def to_list(value: Iterable[Any]) -> list[Any]:
    items = list(itertools.islice(value, MAX_ITEMS + 1))
    check_size(len(items), MAX_ITEMS)
    return items


def total(value: Iterable[Any], attribute: str | None = None, start: float = 0) -> float:
    """The ``sum`` of numbers; of lists it would make one for every item."""
    for item in value:
        number = item[attribute] if attribute is not None else item
        if not isinstance(number, int | float):
            raise SecurityError(f"a {type(number).__name__} is no number and cannot be added up")
        start += number
    return start


def round_number(value: Any, precision: int = 0, method: Any = "common") -> Any:
    check_size(abs(precision), _MAX_DIGITS, "a number of digits of")
    return FILTERS["round"](value, precision, method)


def format_text(text: str, *args: Any, **named: Any) -> str:
    """``str.format``, of fields that are a number, a name or nothing, and have no width."""
    pieces, count = list[str](), itertools.count()
    for literal, field, spec, conversion in string.Formatter().parse(text):
        pieces.append(literal)
        if field is None:
            continue
        if spec or conversion:
            raise SecurityError(f"the field {field!r} has more than a name, which chat templates cannot have")
        place = field or str(next(count))
        pieces.append(text_of(args[int(place)] if place.isdecimal() else named[place]))
    return bounded_join(pieces)


def format_percent(text: str, values: Any) -> str:
    """The ``%`` of texts, for texts and numbers in widths of two digits at most."""
    if "%" in _PERCENT.sub("", text):
        raise SecurityError("formatting with % knows %s, %d and %f alone in chat templates")
    given = values if isinstance(values, tuple) else (values,)
    shown = tuple(value if isinstance(value, int | float) else text_of(value) for value in given)
    check_size(len(text) * 100 + sum(len(value) for value in shown if isinstance(value, str)))
    return text % shown


def split(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _parts(text.split(sep, maxsplit if 0 <= maxsplit < MAX_ITEMS else MAX_ITEMS))


def split_from_right(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
    return _parts(text.rsplit(sep, maxsplit if 0 <= maxsplit < MAX_ITEMS else MAX_ITEMS))


def split_lines(text: str, keepends: bool = False) -> list[str]:
    check_size(sum(map(text.count, _LINE_ENDS)), MAX_ITEMS)
    return _parts(text.splitlines(keepends))


def _parts(parts: list[str]) -> list[str]:
    check_size(len(parts), MAX_ITEMS)
    return parts


def _nested(value: object) -> Iterator[object]:
    """``value`` and all that stands in it, each as often as it stands there."""
    left = [value]
    while left:
        part = left.pop()
        yield part
        if isinstance(part, dict):
            left += part.keys()
            left += part.values()
        elif isinstance(part, _SEQUENCES):
            left += part
