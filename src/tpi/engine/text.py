"""The text of an answer as its tokens come: whole characters only, never a part of a stop string. One thread."""

from collections.abc import Sequence

from tpi.engine.detokenizer import Detokenizer
from tpi.engine.stops import StopMatcher


class AnswerText:
    """What can be shown of an answer, and all that was."""

    def __init__(self, stops: Sequence[str], *, strips_start: bool) -> None:
        """``strips_start``: white space at the beginning is left out."""
        self._stops, self._detokenizer = StopMatcher(stops), Detokenizer()
        self._strips = strips_start
        self._shown = ""

    def __str__(self) -> str:
        return self._shown

    @property
    def has_stopped(self) -> bool:
        """A stop string has come: the text ends before it."""
        return self._stops.matched is not None

    @property
    def matched(self) -> str | None:
        """The stop string."""
        return self._stops.matched

    def push(self, token: bytes) -> str:
        """What can be shown after one more token."""
        return self._show(self._stops.push(self._detokenizer.push(token)))

    def end(self) -> str:
        """What was held back, when no more comes."""
        if self.has_stopped:
            return ""
        return self._show(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _show(self, words: str) -> str:
        if self._strips:
            words = words.lstrip()
            self._strips = not words
        self._shown += words
        return words
