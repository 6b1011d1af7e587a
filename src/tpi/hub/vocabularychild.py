"""The child process of ``vocabularyfile``: makes the file that standard input asks for; if it cannot, says why on
standard output."""

import sys
from pathlib import Path

import msgspec

from tpi.errors import TpiError, UnsupportedModelError
from tpi.gguf.writer import write_metadata
from tpi.hub.vocabulary import vocabulary_entries
from tpi.hub.vocabularyfile import Refusal, Request


def main() -> None:
    """Answers one request."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        entries = vocabulary_entries(Path(request.folder), request.n_tokens, request.architecture)
        write_metadata(Path(request.out), entries)
    except TpiError as error:
        refusal = Refusal(str(error), isinstance(error, UnsupportedModelError))
        sys.stdout.write(msgspec.json.encode(refusal).decode())


if __name__ == "__main__":
    main()
