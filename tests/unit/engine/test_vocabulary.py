"""Tokens as libllama gives them through llama_cpp, and bad vocabularies that would end the process."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.engine.vocabularies import write_byte_pairs, write_gemma4, write_sentencepiece, write_tokens
from tpi.engine.vocabulary import MAX_TEXT_BYTES, Vocabulary
from tpi.errors import ModelFileError, TpiError, UnsupportedModelError, UsageError

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = (
    "",
    "hello world",
    "  The quick\n\nbrown fox\t",
    "héllo 世界 😀 \0 x",
    "It is<s>no</s> trap <|eot_id|>hello<|begin_of_text|>",
    "\ud800 lone",
)


@pytest.fixture(scope="module", params=[write_sentencepiece, write_byte_pairs, write_gemma4])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = request.param(tmp_path_factory.mktemp("vocabulary") / "model.gguf")
    return made


@pytest.fixture
def vocabulary(path: Path) -> Iterator[Vocabulary]:
    with Vocabulary(path) as opened:
        yield opened


@pytest.mark.parametrize("text", TEXTS)
def test_same_tokens_and_bytes_as_llama_cpp(path: Path, vocabulary: Vocabulary, text: str) -> None:
    reference = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for add_special in (False, True):
        for parse_special in (False, True):
            expected = reference.tokenize(text.encode("utf-8", "replace"), add_bos=add_special, special=parse_special)
            tokens = vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)
            assert tokens == expected
            # llama_cpp gives its whole buffer of 32 bytes.
            for token in tokens:
                assert vocabulary.token_bytes(token).ljust(32, b"\0") == reference._model.token_to_piece(token)
    assert vocabulary.n_tokens == reference.n_vocab()
    assert (vocabulary.bos_id, vocabulary.eos_id) == (reference.token_bos(), reference.token_eos())


def test_bytes_of_tokens_are_the_text(vocabulary: Vocabulary) -> None:
    text = "héllo 世界 😀 quick"
    tokens = vocabulary.tokenize(text, add_special=True, parse_special=False)
    data = b"".join(vocabulary.token_bytes(token) for token in tokens)
    assert data.decode().removeprefix(" ") == text


def test_a_split_that_ends_the_process(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="white space"):
        Vocabulary(write_byte_pairs(tmp_path / "v.gguf", pre="whitespace"))


def test_knows_special_tokens(tmp_path: Path) -> None:
    with Vocabulary(write_byte_pairs(tmp_path / "v.gguf")) as vocabulary:
        end_of_turn = vocabulary.eos_id
        assert end_of_turn is not None
        assert vocabulary.bos_id == end_of_turn - 1
        assert vocabulary.eot_id == end_of_turn
        assert vocabulary.add_bos
        assert not vocabulary.adds_space_prefix
        assert vocabulary.token_text(end_of_turn) == "<|eot_id|>"
        assert vocabulary.token_bytes(end_of_turn) == b""
        assert vocabulary.token_bytes(end_of_turn, special=True) == b"<|eot_id|>"
        assert vocabulary.is_special(end_of_turn)
        assert vocabulary.is_end_of_generation(end_of_turn)
        assert not vocabulary.is_end_of_generation(0)
        assert list(vocabulary.special_spans("a<|eot_id|><|eot_id|>")) == [(1, 11), (11, 21)]
    with Vocabulary(write_sentencepiece(tmp_path / "s.gguf")) as vocabulary:
        assert vocabulary.adds_space_prefix
        assert vocabulary.eot_id is None


def test_overlapping_special_texts_are_all_found(tmp_path: Path) -> None:
    with Vocabulary(write_byte_pairs(tmp_path / "v.gguf", ("<a>", "<a>b", ">b<"))) as vocabulary:
        assert list(vocabulary.special_spans("<a>b<")) == [(0, 4), (2, 5)]


def test_long_runs_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    with Vocabulary(write_byte_pairs(tmp_path / "v.gguf", pre="tekken")) as vocabulary:
        text = "a" * 300_000
        assert len(vocabulary.tokenize(text, add_special=False, parse_special=False)) == len(text)
        with pytest.raises(UsageError, match="4,194,304"):
            vocabulary.tokenize("a" * (MAX_TEXT_BYTES + 1), add_special=False, parse_special=False)


def test_closing_twice_and_using_afterwards(tmp_path: Path) -> None:
    vocabulary = Vocabulary(write_byte_pairs(tmp_path / "v.gguf"))
    vocabulary.close()
    vocabulary.close()
    with pytest.raises(ValueError, match="closed"):
        vocabulary.tokenize("a", add_special=False, parse_special=False)


def test_ids_outside_of_the_vocabulary(vocabulary: Vocabulary) -> None:
    for token in (-1, vocabulary.n_tokens):
        for look in (vocabulary.token_bytes, vocabulary.token_text, vocabulary.is_end_of_generation):
            with pytest.raises(ValueError, match="outside"):
                look(token)


@pytest.mark.parametrize(
    ("tokens", "model", "error", "words"),
    [
        (None, "", ModelFileError, "no tokenizer"),
        (["a", "b", "a"], "gpt2", ModelFileError, "'a' 2 times"),
        (["", "[EMPTY_0]"], "gpt2", ModelFileError, "EMPTY_0"),
        (["a", "b"], "llama", ModelFileError, "byte 0"),
        (["a", "b"], "bert", UnsupportedModelError, "'bert'"),
    ],
)
def test_unusable_vocabularies(
    tmp_path: Path, tokens: list[str] | None, model: str, error: type[TpiError], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        Vocabulary(write_tokens(tmp_path / "bad.gguf", tokens, model))
    assert "\n" not in str(caught.value)


def test_libllamas_reason_is_passed_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelFileError, match="out of array bounds for scores") as caught:
        Vocabulary(write_tokens(tmp_path / "bad.gguf", ["a", "b"], n_scores=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelFileError, match="unknown pre-tokenizer"):
        Vocabulary(write_byte_pairs(tmp_path / "pre.gguf", pre="nobody"))
    Vocabulary(write_byte_pairs(tmp_path / "v.gguf")).close()
    assert capfd.readouterr() == ("", "")


def test_what_fails_while_a_long_text_is_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts are read by a thread of their own."""
    with Vocabulary(write_byte_pairs(tmp_path / "v.gguf")) as vocabulary:

        def fail(*_: object) -> list[int]:
            raise AssertionError("no tokens")

        monkeypatch.setattr(vocabulary, "_tokenize", fail)
        with pytest.raises(AssertionError, match="no tokens"):
            vocabulary.tokenize("x" * 100_000, add_special=False, parse_special=False)
