"""Keys are shown on a terminal; a log names a file of mode 600 in their place."""

import contextlib
import io
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest

from tpi.cli.display import PlainDisplay
from tpi.cli.serve import _announce
from tpi.cli.service import Api, ApiOptions
from tpi.cluster.pairing.joinkey import Address
from tpi.engine.settings import SamplingSettings


@dataclass(frozen=True)
class FakeMaster:
    join_key: str = "tpi1-secret"
    addresses: tuple[Address, ...] = (Address("127.0.0.1", 7071),)


def announced(state: Path) -> str:
    said = io.StringIO()
    _announce(cast(Any, FakeMaster()), 1, state, PlainDisplay(said))
    return said.getvalue()


def made_api_key(state: Path) -> str:
    said = io.StringIO()
    options = ApiOptions(host="0.0.0.0", port=0, state=state, model="m")
    with contextlib.closing(Api(options, SamplingSettings(), PlainDisplay(said))):
        return said.getvalue()


def test_a_log_names_files_with_the_keys(tmp_path: Path) -> None:
    state = tmp_path / "state"
    said, file = announced(state), state / "join-key"
    assert "tpi1-secret" not in said and f"the join key is in {file} (" in said
    assert "    tpi join --key-file join-key\n" in said
    assert file.read_text() == "tpi1-secret\n" and stat.S_IMODE(file.stat().st_mode) == 0o600
    said, file = made_api_key(state), state / "api-key"
    assert f"the key in {file}, until this ends" in said
    assert file.read_text().strip() not in said and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_terminal_shows_the_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "    tpi join tpi1-secret\n" in announced(tmp_path)
    assert re.search(r"with this key: \S{32}\n", made_api_key(tmp_path))
    assert list(tmp_path.iterdir()) == []
