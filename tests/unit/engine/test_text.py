"""The text of an answer, token by token."""

import pytest

from tpi.engine.text import AnswerText


def shown(tokens: list[bytes], stops: tuple[str, ...] = (), *, strips_start: bool = False) -> list[str]:
    """What can be shown after each token, and at the end."""
    text = AnswerText(stops, strips_start=strips_start)
    found = [text.push(token) for token in tokens]
    found.append(text.end())
    assert str(text) == "".join(found)
    return found


@pytest.mark.parametrize(
    ("tokens", "stops", "expected"),
    [
        ([b"a", b"b"], (), ["a", "b", ""]),
        (["é".encode()[:1], "é".encode()[1:]], (), ["", "é", ""]),
        ([b"a", "é".encode()[:1]], (), ["a", "", "�"]),
        ([b"ab", b"c"], ("bc",), ["a", "", ""]),
        ([b"ab", b"d"], ("bc",), ["a", "bd", ""]),
        ([b"ab"], ("bc",), ["a", "b"]),
    ],
)
def test_whole_characters_and_no_part_of_a_stop(
    tokens: list[bytes], stops: tuple[str, ...], expected: list[str]
) -> None:
    assert shown(tokens, stops) == expected


def test_space_at_the_beginning_is_left_out() -> None:
    assert shown([b" ", b"\n", b" a", b" b"], strips_start=True) == ["", "", "a", " b", ""]
    assert shown([b" a"], strips_start=False) == [" a", ""]


def test_a_stop_is_told() -> None:
    text = AnswerText(("END",), strips_start=False)
    assert not text.has_stopped
    text.push(b"x END y")
    assert text.has_stopped and text.matched == "END" and str(text) == "x "
    assert text.push(b"more") == "" and text.end() == ""
