"""Standard input: lines of a chat from a terminal, or a prompt from a pipe. Main thread."""

import contextlib
import os
import sys
from collections.abc import Callable

from tpi.cli.signals import ended_by_check
from tpi.errors import TpiError, UsageError

MAX_PROMPT_BYTES = 64 << 20
MAX_LINE_BYTES = 8192


class ChatInput:
    """Reads a chat's lines from the terminal, with editing and history where the system has them."""

    def __init__(self) -> None:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401, PLC0415 - its import changes input(), so it waits for a chat

    def read_line(self, check: Callable[[], None]) -> str | None:
        """The next line, None at the end (Ctrl-D); Ctrl-C begins the line anew, and what ``check`` raises ends it.

        Raises:
            TpiError: ``check`` did, in the middle of the line too.
        """
        while True:
            try:
                return ended_by_check(_type_line, check)
            except EOFError:
                print(file=sys.stderr)
                return None
            except TpiError:
                print(file=sys.stderr)  # after what was typed
                raise
            except KeyboardInterrupt:
                print("^C (Ctrl-D or /exit ends)", file=sys.stderr)
            except UnicodeDecodeError:
                print("tpi: that line is not in this terminal's encoding", file=sys.stderr)


def _type_line() -> str:
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()


def can_chat() -> bool:
    """Whether somebody sits at a terminal."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def read_prompt() -> str:
    """All of standard input as a prompt, without the line break at its end.

    Raises:
        UsageError: empty, too long, or no UTF-8.
    """
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt on standard input has more than {MAX_PROMPT_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not UTF-8") from None
    if not text.strip():
        raise UsageError(
            "there is no prompt: write it after the model, or send it to standard input; without one, chatting needs "
            "a terminal"
        )
    return text.rstrip("\r\n")


def read_first_line(descriptor: int = 0) -> str:
    """One line of at most 8 KB, taking nothing that comes after it; "" at the end of input."""
    line = b""
    while len(line) <= MAX_LINE_BYTES:
        byte = os.read(descriptor, 1)
        if byte in (b"", b"\n"):
            return line.decode("utf-8", "replace").strip()
        line += byte
    raise UsageError(f"the first line of standard input has more than {MAX_LINE_BYTES} bytes: no join key is so long")
