"""A line per request, and none of what was said; keys with names."""

import contextlib
import os
import re
import threading
from pathlib import Path

import pytest

from tests.unit.api.scripted import played
from tpi.api.accesslog import AccessLog
from tpi.api.guards import Rules
from tpi.api.keys import Key, find_key, number_keys, read_keys
from tpi.errors import UsageError

KEYS = (Key("laptop", "first"), Key("phone", "second"))


def test_lines(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with AccessLog(path) as log, played(Rules("127.0.0.1", KEYS), log) as server:
        said = {"model": "demo", "prompt": "a secret", "n": 2}
        assert server.post("/v1/completions", said, authorization="Bearer second")[0] == 200
        assert server.post("/v1/completions?prompt=secret", said, authorization="Bearer wrong")[0] == 401
        path.rename(tmp_path / "moved.log")
        assert server.post("/nothing%0Ahere?secret", None, "GET", **{"x-api-key": "first"})[0] == 404
    text = (tmp_path / "moved.log").read_text() + path.read_text()
    lines = [re.sub(r"^\S+Z |\d+ms", "", line) for line in text.splitlines()]
    assert lines[0] == "127.0.0.1 key=phone POST /v1/completions 200  prompt=14 answer=4"
    assert lines[1] == "127.0.0.1 key=- POST /v1/completions 401 "
    assert lines[2] == "127.0.0.1 key=laptop GET /nothing%0Ahere 404 "
    assert len(lines) == 3 and "secret" not in text and "Hello" not in text and "second" not in text


def test_a_log_that_is_full_can_be_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing can be written: whoever closes it does not wait for room."""
    held = threading.Event()

    def fail(_: str) -> None:
        held.wait(20)
        raise UsageError("the disk is full")

    log = AccessLog(tmp_path / "access.log")
    monkeypatch.setattr(log, "_write", fail)
    for _ in range(5000):
        log.add("x")
    closing = threading.Thread(target=log.close)
    closing.start()
    held.set()
    closing.join(20)
    assert not closing.is_alive()
    log.close()


def test_standard_error_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone, AccessLog(None) as log:
        monkeypatch.setattr("sys.stderr", gone)
        with pytest.raises(UsageError, match="the access log at standard error cannot be written: Broken pipe"):
            log._write("x")
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            gone.close()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: Is a directory"):
        AccessLog(tmp_path)


def write_keys(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = write_keys(tmp_path, "# people\n\nlaptop  abc\ndef\n")
    keys = read_keys(path)
    assert [(key.name, key.secret) for key in keys] == [("laptop", "abc"), ("line-4", "def")]
    assert "abc" not in repr(keys)
    assert [found and found.name for found in (find_key(keys, shown) for shown in ("abc", "def", "ab", ""))] == [
        "laptop", "line-4", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("secret", ["", " ", "a b", "a\n", "\u00e9"])
def test_keys_that_nobody_can_show_are_refused(secret: str) -> None:
    """An empty one would be everybody's."""
    with pytest.raises(UsageError, match="API key 2 must be"):
        number_keys(["a", secret])
    assert find_key((Key("none", ""),), "") is None


@pytest.mark.parametrize(
    ("text", "mode", "said"),
    [
        ("abc", 0o640, r"can be read by others \(mode 640\): say chmod 600"),
        ("", 0o600, "there is no key"),
        ("a b c", 0o600, "line 1 of .* is not a name"),
        ("a 1\na 2", 0o600, "line 2 of .* is not a name"),
        ("a/b 1", 0o600, "line 1 of .* is not a name"),
        ("a \u00e9", 0o600, "line 1 of .* is not a name"),
    ],
)
def test_files_of_keys_that_are_refused(tmp_path: Path, text: str, mode: int, said: str) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        read_keys(write_keys(tmp_path, text, mode))
    assert "abc" not in str(refused.value)
