"""API keys with names: what a file of them looks like, and who a caller is. No secret is ever shown."""

import hashlib
import hmac
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tpi.errors import UsageError

MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[\w.@-]{1,64}")
_SECRET = re.compile(r"[!-~]+")


@dataclass(frozen=True)
class Key:
    """``name`` stands in the access log; ``secret`` is what the caller shows."""

    name: str
    secret: str = field(repr=False)


def number_keys(secrets: Sequence[str]) -> tuple[Key, ...]:
    """Keys that nobody gave names to.

    Raises:
        UsageError: one is empty, or nothing that a header can hold.
    """
    for number, secret in enumerate(secrets, start=1):
        if not _SECRET.fullmatch(secret):
            raise UsageError(f"API key {number} must be of letters, digits and signs of ASCII, without spaces")
    return tuple(Key(f"key-{number}", secret) for number, secret in enumerate(secrets, start=1))


def read_keys(path: Path) -> tuple[Key, ...]:
    """Lines of ``name key``, or of a key alone; empty ones and those that begin with # do not count.

    Raises:
        UsageError: the file cannot be read, others can read it, too, or a line is something else.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the keys in {path} cannot be read: {error.strerror or error}") from error
    if sys.platform != "win32" and stat.S_ISREG(mode) and mode & (stat.S_IRGRP | stat.S_IROTH):
        raise UsageError(f"the keys in {path} can be read by others (mode {mode & 0o777:03o}): say chmod 600 {path}")
    if len(data) > MAX_FILE_BYTES:
        raise UsageError(f"{path} has more than {MAX_FILE_BYTES >> 20} MiB: it is no file of keys")
    found = dict[str, Key]()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        name = words[0] if len(words) == 2 else f"line-{number}"
        if len(words) > 2 or not _NAME.fullmatch(name) or name in found or not _SECRET.fullmatch(words[-1]):
            raise UsageError(f"line {number} of {path} is not a name of its own and a key, nor a key alone")
        found[name] = Key(name, words[-1])
    if not found:
        raise UsageError(f"there is no key in {path}: write lines of a name and a key")
    return tuple(found.values())


def find_key(keys: Sequence[Key], shown: str) -> Key | None:
    """Whose key was shown; nobody's if none was. Every key is compared, in a time that does not tell how much of it was
    right."""
    digest = _digest(shown)
    matches = [key for key in keys if hmac.compare_digest(digest, _digest(key.secret))]
    return matches[0] if shown and matches else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
