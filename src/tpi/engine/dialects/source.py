"""A text that comes in pieces, read as if it were all there: what waits for more of it is a generator.

Knows no dialect. One per answer, one thread. However the text is cut into pieces, the same is read.
"""

from collections.abc import Callable, Generator
from typing import TypeAlias, TypeVar

_Found = TypeVar("_Found")
Steps: TypeAlias = Generator[None, None, _Found]
"""Yields whenever more text is needed."""

_SPACE = " \t\r\n"


class Malformed(Exception):
    """The text is not what was expected."""


class Ended(Exception):
    """The text ends in the middle of what was expected."""


class TextSource:
    """``push`` and ``end`` are for whoever has the text, all else for the generators."""

    def __init__(self) -> None:
        self._text = ""
        self._position = 0
        self._told = 0
        """What comes before this has been told to whoever listens, or is known to be no text."""
        self._is_over = False

    def push(self, text: str) -> None:
        self._text = self._text[self._told :] + text
        self._position -= self._told
        self._told = 0

    def end(self) -> None:
        self._is_over = True

    def settle(self) -> None:
        """All that was read is understood."""
        self._told = self._position

    def take_untold(self) -> str:
        """What was read since ``settle``, and is no more than text now."""
        text = self._text[self._told : self._position]
        self.settle()
        return text

    def take_rest(self) -> str:
        """What was not settled, read or not, when no more comes."""
        self._position = len(self._text)
        return self.take_untold()

    def peek(self) -> Steps[str]:
        """The next character; empty at the end."""
        while self._position == len(self._text):
            if self._is_over:
                return ""
            yield
        return self._text[self._position]

    def take(self) -> Steps[str]:
        """Reads a character. Raises ``Ended``."""
        character = yield from self.peek()
        if not character:
            raise Ended
        self._position += 1
        return character

    def skip_space(self) -> Steps[str]:
        """Reads white space; gives the next character."""
        while True:
            character = yield from self.peek()
            if not character or character not in _SPACE:
                return character
            self._position += 1

    def try_take(self, *texts: str) -> Steps[str]:
        """Reads the longest of ``texts`` that comes next; empty if none does."""
        while True:
            rest = self._text[self._position : self._position + max(map(len, texts))]
            if not self._is_over and any(len(rest) < len(text) and text.startswith(rest) for text in texts):
                yield
                continue
            found = max((text for text in texts if rest.startswith(text)), key=len, default="")
            self._position += len(found)
            return found

    def expect(self, text: str) -> Steps[None]:
        """Reads ``text``. Raises ``Malformed``, and ``Ended`` where the text ends in it."""
        found = yield from self.try_take(text)
        if not found:
            rest = self._text[self._position :]
            if self._is_over and text.startswith(rest):
                raise Ended
            raise Malformed

    def take_until(self, markers: tuple[str, ...], tell: Callable[[str], None]) -> Steps[str]:
        """Reads up to the first of ``markers``, and reads it; tells the text before it as it comes. Gives the marker,
        empty at the end of the text. Of several that begin at the same place the longest counts."""
        while True:
            found = [
                (place, -len(marker), marker)
                for marker in markers
                if (place := self._text.find(marker, self._position)) >= 0
            ]
            n_held = self._n_held(markers)
            if found:
                place, _, marker = min(found)
                # A longer one may begin here or before.
                if place < len(self._text) - n_held or self._is_over:
                    self._tell(place, tell)
                    self._position = place + len(marker)
                    return marker
            if self._is_over:
                self._tell(len(self._text), tell)
                return ""
            self._tell(len(self._text) - n_held, tell)
            yield

    def _tell(self, stop: int, tell: Callable[[str], None]) -> None:
        if stop > self._position:
            text, self._position = self._text[self._position : stop], stop
            tell(text)

    def _n_held(self, markers: tuple[str, ...]) -> int:
        """How long the end of the text is that may become a marker, from the earliest place where one may begin."""
        longest = max((len(marker) - 1 for marker in markers), default=0)
        left = len(self._text) - self._position
        for length in range(min(longest, left), 0, -1):
            if any(len(marker) > length and marker.startswith(self._text[-length:]) for marker in markers):
                return length
        return 0
