"""The join key's text: golden, round trip, and every way to spoil it, none of which shows the secret."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.pairing.joinkey import Address, JoinKey
from tpi.errors import PairingError, TpiError, UsageError

KEY = JoinKey((Address("192.168.1.5", 7071), Address("fe80::1", 65535)), bytes(range(32)), b"0123456789abcdef")
GOLDEN = (
    "tpi1-aiftcojsfyytmobogexdlhy3a5tgkobqhi5dd777aaaqeayeaudaocajbifqydiob4ibceqtcqkrmfyydenbwha5dyptamj"
    "sgm2dknrxha4wcytdmrswmttjd6ua"
)

hosts = st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True)
keys = st.builds(
    JoinKey,
    st.lists(st.builds(Address, hosts, st.integers(1, 65535)), min_size=1, max_size=8).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=16, max_size=16),
)


def test_golden_text() -> None:
    assert KEY.encode() == GOLDEN
    assert JoinKey.decode(GOLDEN) == KEY


@given(keys)
def test_every_key_comes_back(key: JoinKey) -> None:
    assert JoinKey.decode(key.encode()) == key


def test_case_and_white_space_do_not_matter() -> None:
    text = KEY.encode().upper()
    assert JoinKey.decode(f"  {text[:20]}\n{text[20:50]} {text[50:]}\r\n") == KEY


@given(st.data())
def test_a_typing_mistake_is_named(data: st.DataObject) -> None:
    text = KEY.encode()
    position = data.draw(st.integers(5, len(text) - 2))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz234567").filter(lambda c: c != text[position]))
    with pytest.raises(PairingError, match="typing mistake"):
        JoinKey.decode(text[:position] + letter + text[position + 1 :])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("hello", "does not begin with tpi1-"),
        ("tpi2-aaaa", "another version"),
        ("tpi1-", "typing mistake"),
        ("tpi1-aaa!", "typing mistake"),
        ("tpi1-äöü", "typing mistake"),
        ("tpi1-a", "typing mistake"),
        (GOLDEN[:-8], "a part of it is missing"),
        (GOLDEN[:60] + GOLDEN[68:], "a part of it is missing"),
        (GOLDEN + "1", "typing mistake"),
        ("tpi1-" + "a" * 10_000, "longer than 4096"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(PairingError, match=message) as caught:
        JoinKey.decode(text)
    assert "\n" not in str(caught.value)


def text_of(content: bytes) -> str:
    """A text with a right checksum around any content."""
    from tpi.cluster.pairing import joinkey  # noqa: PLC0415 - its private checksum

    data = content + joinkey._checksum(content)
    return "tpi1-" + base64.b32encode(data).decode().rstrip("=").lower()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" + bytes(48),
        b"\x09" + bytes(48),
        b"\x01\x05ab",
        b"\x01\x01a\x00\x00" + bytes(48),
        b"\x01\x01a\x01\x00" + bytes(47),
        b"\x01\x01a\x01\x00" + bytes(49),
        b"\x01\x01\xff\x01\x00" + bytes(48),
        b"\x01\x02a \x01\x00" + bytes(48),
    ],
)
def test_content_that_is_no_key_is_refused(content: bytes) -> None:
    with pytest.raises(PairingError, match="a form that this version does not know"):
        JoinKey.decode(text_of(content))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(PairingError):
        JoinKey.decode("tpi1-" + text)


def test_the_secret_is_never_shown() -> None:
    assert KEY.secret.decode() not in repr(KEY) and "secret" not in repr(KEY)
    text = KEY.encode()
    for spoilt in (text[:-8], text[5:], "tpi1-" + text, text + "!", "tpi2" + text[4:]):
        with pytest.raises(PairingError) as caught:
            JoinKey.decode(spoilt)
        error: BaseException | None = caught.value
        while error is not None:
            assert text[-40:-20] not in str(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:80", Address("10.0.0.1", 80)),
        ("[fe80::1%eth0]:7071", Address("fe80::1%eth0", 7071)),
        ("raspberrypi.local:65535", Address("raspberrypi.local", 65535)),
    ],
)
def test_addresses(text: str, expected: Address) -> None:
    assert Address.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text", ["", ":", "host", "host:", ":80", "host:0", "host:65536", "::1:80", "a b:1", "h:-1", "h:²"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Address.parse(text)
    assert isinstance(caught.value, TpiError) and "must look like" in str(caught.value)
