"""Ends a text at a stop string, without ever showing a part of one.

Knows no tokens. Runs on the master's generation thread; one matcher per answer.
"""

from collections.abc import Sequence


class StopMatcher:
    """Lets text through up to the first stop string.

    "First" means completed first; of several completed by the same character the longest counts. However the text
    is cut into pieces, the texts joined are the same.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._matched

    def push(self, text: str) -> str:
        """Returns what can be shown: all but the longest end that could begin a stop string.

        After a match always empty.
        """
        if self._matched is not None:
            return ""
        text = self._held + text
        end = self._first_end(text)
        if end is not None:
            self._matched = max((stop for stop in self._stops if text.endswith(stop, 0, end)), key=len)
            self._held = ""
            return text[: end - len(self._matched)]
        n_held = self._unsafe_length(text)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]

    def flush(self) -> str:
        """Ends the text: returns what was held back and turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_end(self, text: str) -> int | None:
        starts = ((text.find(stop), stop) for stop in self._stops)
        return min((start + len(stop) for start, stop in starts if start >= 0), default=None)

    def _unsafe_length(self, text: str) -> int:
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
