"""Standard input as prompts, keys and chats."""

import io
import os
from collections.abc import Callable

import pytest

from tpi.cli import terminal
from tpi.cli.terminal import ChatInput, read_first_line, read_prompt
from tpi.errors import UsageError

SetInput = Callable[[bytes], None]


@pytest.fixture
def set_input(monkeypatch: pytest.MonkeyPatch) -> SetInput:
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_all_of_standard_input_is_the_prompt(set_input: SetInput) -> None:
    set_input("  Wörter\nand more\r\n\n".encode())
    assert read_prompt() == "  Wörter\nand more"


@pytest.mark.parametrize("data", [b"", b" \n\t\n"])
def test_no_prompt(set_input: SetInput, data: bytes) -> None:
    set_input(data)
    with pytest.raises(UsageError, match="there is no prompt"):
        read_prompt()


def test_prompts_that_cannot_be(set_input: SetInput, monkeypatch: pytest.MonkeyPatch) -> None:
    set_input(b"caf\xe9")
    with pytest.raises(UsageError, match="not UTF-8"):
        read_prompt()
    monkeypatch.setattr(terminal, "MAX_PROMPT_BYTES", 10)
    set_input(b"x" * 11)
    with pytest.raises(UsageError, match="more than"):
        read_prompt()


def test_a_first_line_takes_nothing_of_the_second() -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, b" tpi1-key \nrest")
        assert read_first_line(reader) == "tpi1-key"
        assert os.read(reader, 100) == b"rest"
        os.write(writer, b"x" * (terminal.MAX_LINE_BYTES + 1))
        with pytest.raises(UsageError, match="no join key is so long"):
            read_first_line(reader)
    finally:
        os.close(reader)
        os.close(writer)


def test_ctrl_c_begins_the_line_anew_and_ctrl_d_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps: list[str | BaseException] = [KeyboardInterrupt(), "hello", EOFError()]

    def fake_input(prompt: str = "") -> str:
        step = steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step

    monkeypatch.setattr("builtins.input", fake_input)
    chat = ChatInput()
    assert chat.read_line(lambda: None) == "hello"
    assert chat.read_line(lambda: None) is None
    assert "> " in capsys.readouterr().err
