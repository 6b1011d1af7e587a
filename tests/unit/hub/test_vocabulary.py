"""Tokenizers of folders, through libllama: texts come to the tokens that the folder's own pairs give."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.hubfolders import byte_texts, write_tokenizer
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import ModelFileError, TpiError, UnsupportedModelError
from tpi.gguf.writer import write_metadata
from tpi.hub.vocabulary import vocabulary_entries

N = 320
FLAGS = {"special": True, "normalized": False}


def _open(path: Path, architecture: str = "llama") -> Vocabulary:
    write_metadata(path / "vocabulary.gguf", vocabulary_entries(path, N, architecture))
    return Vocabulary(path / "vocabulary.gguf")


def _texts(vocabulary: Vocabulary, text: str, *, parse_special: bool = False) -> list[str]:
    tokens = vocabulary.tokenize(text, add_special=False, parse_special=parse_special)
    return [vocabulary.token_text(token) for token in tokens]


def test_bytes_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_tokenizer(tmp_path, N)
    with _open(tmp_path) as vocabulary:
        assert vocabulary.n_tokens == N and (vocabulary.bos_id, vocabulary.eos_id) == (N - 2, N - 1)
        assert not vocabulary.add_bos
        assert _texts(vocabulary, "in the outer") == ["in", "Ġthe", "Ġ", "ou", "t", "er"]
        assert _texts(vocabulary, "a<|eot_id|>", parse_special=True) == ["a", "<|eot_id|>"]
        assert len(_texts(vocabulary, "a<|eot_id|>")) > 2
        assert vocabulary.is_end_of_generation(N - 1)
        assert b"".join(map(vocabulary.token_bytes, vocabulary.tokenize("né\n", add_special=True, parse_special=False)))


def test_texts_get_their_normal_form(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_tokenizer(tmp_path, N)
    with _open(tmp_path) as vocabulary:
        assert len(_texts(vocabulary, "e\u0301")) == 3
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": {"type": "NFC"}}))
    with _open(tmp_path) as vocabulary:
        assert _texts(vocabulary, "e\u0301") == _texts(vocabulary, "\u00e9") and len(_texts(vocabulary, "\u00e9")) == 2


def _characters(path: Path, *, prepends: bool) -> None:
    """A tokenizer of characters and bytes, as of Llama 2 and Gemma, whose later pair would win by the older rule."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdexyz"]
    merges = [["a", "b"], ["c", "d"], ["b", "c"], ["ab", "c"], ["▁", "a"], ["▁", "x"], ["▁x", "y"]]
    texts += ["".join(pair) for pair in merges]
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = [{"type": "Prepend", "prepend": "▁"}, space] if prepends else [space]
    added = [{"id": number, "content": text, **FLAGS} for number, text in enumerate(texts[:3])]
    added.append({"id": len(texts), "content": "[tool]", "special": False})
    vocabulary = {text: number for number, text in enumerate(texts)}
    model = {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocabulary, "merges": merges}
    begin = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}]}
    whole: dict[str, Any] = {"added_tokens": added, "model": model, "post_processor": begin}
    whole["normalizer"] = {"type": "Sequence", "normalizers": steps}
    (path / "tokenizer.json").write_text(json.dumps(whole))
    (path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": {"content": "</s>"}}))
    (path / "config.json").write_text("{}")


@pytest.mark.parametrize("prepends", [True, False])
def test_characters_and_pairs(prepends: bool, tmp_path: Path) -> None:
    _characters(tmp_path, prepends=prepends)
    with _open(tmp_path) as vocabulary:
        assert vocabulary.adds_space_prefix == prepends and vocabulary.add_bos and vocabulary.bos_id == 1
        assert _texts(vocabulary, "abcd xy")[-3:] == ["ab", "cd", "▁xy"]
        assert _texts(vocabulary, "é")[-2:] == ["<0xC3>", "<0xA9>"]
        assert _texts(vocabulary, "a[tool]", parse_special=True)[-1] == "[tool]"


def _field(number: int, value: bytes) -> bytes:
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def test_an_older_file_of_pieces(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256))]
    pieces += [(text, -float(index), 1) for index, text in enumerate(["ab", "cd", "abc", "▁", *"abcd"])]
    data = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([24, kind]))
        for text, score, kind in pieces
    )
    (tmp_path / "tokenizer.model").write_bytes(data + _field(2, bytes([24, 2])) + _field(3, bytes([24, 1])))
    with _open(tmp_path) as vocabulary:
        assert vocabulary.adds_space_prefix and (vocabulary.bos_id, vocabulary.eos_id) == (1, 2)
        assert _texts(vocabulary, "abcd") == ["▁", "ab", "cd"]
    (tmp_path / "tokenizer.model").write_bytes(data + _field(2, bytes([24, 1])))
    with pytest.raises(UnsupportedModelError, match="of kind 1"):
        vocabulary_entries(tmp_path, N, "llama")
    (tmp_path / "tokenizer.model").write_bytes(data[:-3])
    with pytest.raises(ModelFileError, match="damaged"):
        vocabulary_entries(tmp_path, N, "llama")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "Unigram"}}, "kind 'Unigram'"),
        ({"model": {"type": "BPE", "vocab": [], "merges": []}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": [["a"]]}, "pre_tokenizer": None}, "neither of bytes"),
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "not known"),
    ],
)
def test_tokenizers_that_cannot_be_used_are_told_of(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelFileError, match="no tokenizer"):
        vocabulary_entries(tmp_path, N, "llama")
    write_tokenizer(tmp_path, N)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(TpiError, match=message) as caught:
        vocabulary_entries(tmp_path, N, "llama")
    assert "\n" not in str(caught.value)


def test_all_bytes_have_a_text() -> None:
    assert len(set(byte_texts())) == 256
