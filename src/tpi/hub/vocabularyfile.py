"""The GGUF file that libllama reads a model's vocabulary from: the model's own, or one made of a folder's files.

That is made in a child process, whose memory, some hundred MB for a large vocabulary, is gone afterwards.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.reader import Gguf
from tpi.hub.folder import CONFIG

_TIMEOUT_S = 300.0


class Request(msgspec.Struct, frozen=True):
    """What the child is told: of which folder, how many tokens, for which architecture, to which file."""

    folder: str
    n_tokens: int
    architecture: str
    out: str


class Refusal(msgspec.Struct, frozen=True):
    """What it says if it cannot."""

    message: str
    is_unsupported: bool


@contextmanager
def vocabulary_file(gguf: Gguf) -> Iterator[Path]:
    """The path of such a file, there as long as the context.

    Raises:
        ModelFileError, UnsupportedModelError: the folder has no tokenizer, or none that can be used.
    """
    first = gguf.paths[0]
    if first.name != CONFIG:
        yield first
        return
    with tempfile.TemporaryDirectory(prefix="tpi-", ignore_cleanup_errors=True) as place:
        out = Path(place) / "vocabulary.gguf"
        n_tokens, architecture = gguf.tensors["token_embd.weight"].n_rows, gguf.metadata["general.architecture"]
        _make(Request(str(first.parent), n_tokens, str(architecture), str(out)))
        yield out


def _make(request: Request) -> None:
    command = [sys.executable, "-P", "-m", "tpi.hub.vocabularychild"]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(request), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"the tokenizer of {request.folder} could not be read within {_TIMEOUT_S:g} s") from None
    if done.returncode == 0 and not done.stdout:
        return
    try:
        refusal = msgspec.json.decode(done.stdout, type=Refusal)
    except msgspec.DecodeError:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ModelFileError(f"the tokenizer of {request.folder} cannot be read: {last[0]:.200}") from None
    raise (UnsupportedModelError if refusal.is_unsupported else ModelFileError)(refusal.message)
