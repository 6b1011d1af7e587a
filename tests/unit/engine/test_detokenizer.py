"""Bytes to text: whole characters only, however the bytes are cut."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from tpi.engine.detokenizer import Detokenizer

cuts = st.lists(st.binary(max_size=6), max_size=12) | st.text(max_size=12).flatmap(
    lambda text: st.lists(st.integers(0, 40), max_size=6).map(
        lambda places: cut(text.encode("utf-8", "replace"), places)
    )
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(borders)]


@given(cuts)
def test_any_cutting_gives_the_text_of_the_whole(pieces: list[bytes]) -> None:
    detokenizer = Detokenizer()
    text = "".join([detokenizer.push(piece) for piece in pieces] + [detokenizer.flush()])
    assert text == b"".join(pieces).decode("utf-8", "replace")


@given(st.text())
def test_never_half_a_character(text: str) -> None:
    detokenizer = Detokenizer()
    data = text.encode("utf-8", "replace")
    assert "\ufffd" not in "".join(detokenizer.push(bytes([byte])) for byte in data) or "\ufffd" in text


def test_shows_a_character_with_its_last_byte() -> None:
    detokenizer = Detokenizer()
    assert [detokenizer.push(bytes([byte])) for byte in "a😀".encode()] == ["a", "", "", "", "😀"]


def test_replaces_what_cannot_become_a_character() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push(b"a\xc3") == "a"
    assert detokenizer.push(b"b") == "\ufffdb"
    assert detokenizer.push(b"\xf0\x9f") == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.push(b"c") == "c"
