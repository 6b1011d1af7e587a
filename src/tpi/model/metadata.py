"""Typed reading of one architecture's GGUF metadata, with errors that name the file and the key."""

from collections.abc import Mapping
from pathlib import Path

from tpi.errors import ModelFileError
from tpi.model.spec import Entry


class Metadata:
    """``entries`` are those of ``architecture``, without its name before them; errors name ``file``."""

    def __init__(self, file: Path, architecture: str, entries: Mapping[str, Entry]) -> None:
        self.file = file
        self.architecture, self._entries = architecture, entries

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def _get(self, key: str, default: Entry | None) -> Entry:
        value = self._entries.get(key, default)
        if value is None:
            raise ModelFileError(
                f"{self.file} has no metadata entry {self.architecture}.{key}: it is incomplete, fetch or convert it "
                "again"
            )
        return value

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of 0 to 2^31 - 1.

        Raises:
            ModelFileError: missing without default, or another type or size.
        """
        return self._integer(key, self._get(key, default))

    def positive(self, key: str) -> int:
        """An integer of 1 to 2^31 - 1.

        Raises:
            ModelFileError: as :meth:`integer`, or it is 0.
        """
        value = self.integer(key)
        self.require(value > 0, key, value)
        return value

    def sole(self, key: str, default: int | None = None) -> int:
        """A positive integer, or an array with the same one for every layer.

        Raises:
            ModelFileError: as :meth:`positive`, or layers differ.
        """
        value = self._get(key, default)
        if isinstance(value, tuple):
            self.require(len(set(value)) == 1, key, "different values per layer")
            value = value[0]
        found = self._integer(key, value)
        self.require(found > 0, key, found)
        return found

    def each(self, key: str, n_layers: int, default: int | None = None) -> tuple[int, ...]:
        """An integer of 0 to 2^31 - 1 for every layer: an array of them, or one for all.

        Raises:
            ModelFileError: missing without default, of another type or size, or too few.
        """
        value = self._get(key, default)
        values = value if isinstance(value, tuple) else (value,) * n_layers
        self.require(len(values) >= n_layers, key, f"{len(values)} values")
        return tuple(self._integer(key, entry) for entry in values[:n_layers])

    def flags(self, key: str, n_layers: int) -> tuple[bool, ...] | None:
        """A boolean for every layer, if the entry is an array of them.

        Raises:
            ModelFileError: of another type, or too few.
        """
        value = self._entries.get(key)
        if not isinstance(value, tuple):
            return None
        fits = len(value) >= n_layers and all(entry in (0, 1) for entry in value)
        self.require(fits, key, f"{len(value)} values")
        return tuple(bool(entry) for entry in value[:n_layers])

    def has_any(self, key: str) -> bool:
        """Whether the entry is an array with a value that is not zero or false."""
        value = self._entries.get(key)
        return isinstance(value, tuple) and any(value)

    def windows(self, n_layers: int, pattern: int, usual: int | None = None) -> tuple[int, ...]:
        """How many positions attention of every layer sees, 0: all; ``usual``: if the file does not say. By
        ``attention.sliding_window_pattern``: whether each layer is one with a window, or of how many layers the last is
        without.

        Raises:
            ModelFileError: an entry is missing or impossible.
        """
        window, key = self.integer("attention.sliding_window", usual), "attention.sliding_window_pattern"
        self.require(window > 0, "attention.sliding_window", window)
        flags = self.flags(key, n_layers)
        if flags is None:
            n_pattern = self.integer(key, pattern)
            flags = tuple(not n_pattern or layer % n_pattern < n_pattern - 1 for layer in range(n_layers))
        return tuple(window if flag else 0 for flag in flags)

    def epsilon(self, key: str) -> float:
        """A positive number.

        Raises:
            ModelFileError: as :meth:`number`, or it is not positive.
        """
        value = self.number(key)
        self.require(value > 0, key, value)
        return value

    def _integer(self, key: str, value: Entry) -> int:
        self.require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31, key, value)
        assert isinstance(value, int)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number.

        Raises:
            ModelFileError: missing without default, or not a finite number.
        """
        return self._number(key, self._get(key, default))

    def _number(self, key: str, value: Entry) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
        self.require(is_number, key, value)
        assert isinstance(value, int | float)
        return float(value)

    def numbers(self, key: str, n_layers: int) -> tuple[float, ...]:
        """A finite number for every layer: an array of them, or one for all.

        Raises:
            ModelFileError: missing, of another type or size, or too few.
        """
        value = self._get(key, None)
        values = value if isinstance(value, tuple) else (value,) * n_layers
        self.require(len(values) >= n_layers, key, f"{len(values)} values")
        return tuple(self._number(key, entry) for entry in values[:n_layers])

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            ModelFileError: of another type.
        """
        value = self._entries.get(key, default)
        self.require(isinstance(value, bool), key, value)
        return bool(value)

    def text(self, key: str, default: str) -> str:
        """A string, or the default."""
        value = self._entries.get(key, default)
        return value if isinstance(value, str) else default

    def require(self, condition: bool, key: str, value: object) -> None:
        """Raises:
        ModelFileError: the condition does not hold.
        """
        if not condition:
            raise ModelFileError(f"{self.file}: {key} = {value} does not fit a {self.architecture} model")

    def require_tensor(self, present: bool, name: str) -> None:
        """Raises:
        ModelFileError: the tensor is not there.
        """
        if not present:
            raise ModelFileError(f"{self.file} has no tensor {name}: it is incomplete, fetch or convert it again")


def printable(text: str, max_length: int = 200) -> str:
    """``text`` of a file without anything that moves a terminal's cursor, cut to ``max_length`` characters."""
    return "".join(c if c.isprintable() else " " for c in text[:max_length])
