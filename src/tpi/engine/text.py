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
        self.n_come = 0
        """Whole characters of all tokens, those of a stop string included."""
        self.n_told = 0
        """Of these, those that are shown, or were left out at the beginning."""

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
        characters = self._detokenizer.push(token)
        self.n_come += len(characters)
        return self._show(self._stops.push(characters))

    def end(self) -> str:
        """What was held back, when no more comes."""
        if self.has_stopped:
            return ""
        return self._show(self._stops.push(self._detokenizer.flush()) + self._stops.flush())

    def _show(self, words: str) -> str:
        self.n_told += len(words)
        if self._strips:
            words = words.lstrip()
            self._strips = not words
        self._shown += words
        return words
