"""Typed reading of a folder's JSON files, with errors that name the file and the key. Any thread."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tpi.errors import ModelFileError

_MAX_BYTES = 64 << 20


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelFileError: it cannot be read, is too large, or holds no JSON object.
    """
    text = read_text(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ModelFileError(f"{path} is damaged: it holds no JSON object")
    return found


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        ModelFileError: it cannot be read, or is too large.
    """
    try:
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > _MAX_BYTES:
                raise ModelFileError(
                    f"{path} has {size:,} bytes, more than the {_MAX_BYTES:,} that such a file may have"
                )
            return stream.read(size).decode("utf-8", "replace")
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror}") from error


class Config:
    """An object of a ``config.json``; one under ``text_config`` stands for the whole."""

    def __init__(self, file: Path, values: Mapping[str, Any]) -> None:
        self.file = file
        text = values.get("text_config")
        self._values = {**values, **text} if isinstance(text, dict) else dict(values)

    def __contains__(self, key: str) -> bool:
        return self._values.get(key) is not None

    def keys(self) -> list[str]:
        """All that have a value."""
        return [key for key, value in self._values.items() if value is not None]

    def first(self, *keys: str) -> str | None:
        """The first of these keys that has a value."""
        return next((key for key in keys if key in self), None)

    def integer(self, key: str, default: int | None = None) -> int:
        """An integer of 0 to 2^31 - 1.

        Raises:
            ModelFileError: missing without default, or of another type or size.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise self.impossible(key)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, rounded to 32 bits as GGUF files keep it.

        Raises:
            ModelFileError: missing without default, or no number.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 3e38:
            raise self.impossible(key)
        return float(np.float32(value))

    def flag(self, key: str, default: bool) -> bool:
        """True or false.

        Raises:
            ModelFileError: something else.
        """
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.impossible(key)
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string, or the default where there is none."""
        value = self._values.get(key)
        return value if isinstance(value, str) else default

    def list(self, key: str) -> list[Any]:
        """An array, empty where there is none.

        Raises:
            ModelFileError: something else, or too long.
        """
        value = self._values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or len(value) > 1 << 16:
            raise self.impossible(key)
        return value

    def numbers(self, key: str) -> tuple[float, ...]:
        """An array of finite numbers, empty where there is none.

        Raises:
            ModelFileError: something else.
        """
        found = self.list(key)
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in found):
            raise self.impossible(key)
        return tuple(float(value) for value in found)

    def part(self, *keys: str) -> "Config":
        """The object under the first of ``keys`` that has one; empty if none has."""
        for key in keys:
            value = self._values.get(key)
            if isinstance(value, dict):
                return Config(self.file, value)
        return Config(self.file, {})

    def impossible(self, key: str) -> ModelFileError:
        """The error for a value that cannot be."""
        return ModelFileError(f"{self.file}: {key} = {self._values.get(key)!s:.80} cannot be; fetch the file again")

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelFileError(f"{self.file} has no entry {key}: it is incomplete, fetch it again")
        return value
