"""Tokenizers of any size that tokenizers accept: all bytes, then words made of letters. They mean nothing."""

import itertools
import string
from collections.abc import Iterator
from typing import Any

import gguf

from bench.shapes import Shape

_N_BYTES = 256
_SPACE = "▁"


def add_tokenizer(writer: Any, shape: Shape) -> None:
    """Adds a tokenizer with exactly ``shape.n_vocab`` tokens, of the shape's kind, to a ``gguf.GGUFWriter``."""
    if shape.vocabulary == "gpt2":
        _add_byte_pairs(writer, shape.n_vocab)
    else:
        _add_sentencepiece(writer, shape.n_vocab)
    writer.add_vocab_size(shape.n_vocab)
    writer.add_add_bos_token(True)


def _add_sentencepiece(writer: Any, n_vocab: int) -> None:
    """Three special tokens, all bytes, then letters and words that shorter ones make up, with or without a space."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(_N_BYTES))]
    kinds = [gguf.TokenType.UNKNOWN, *2 * [gguf.TokenType.CONTROL], *_N_BYTES * [gguf.TokenType.BYTE]]
    words = (start + word for word in _words() for start in ("", _SPACE))
    tokens += [_SPACE, *itertools.islice(words, n_vocab - len(tokens) - 1)]
    kinds += (n_vocab - len(kinds)) * [gguf.TokenType.NORMAL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(number) for number in range(n_vocab)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def _add_byte_pairs(writer: Any, n_vocab: int) -> None:
    """All bytes, words that merges of a shorter word and a letter make up, and 256 special tokens, as Llama 3 has."""
    n_special = 256
    bytes_ = _byte_letters()
    space = bytes_[ord(" ")]
    tokens, merges = list(bytes_), []
    for word in _words():
        for whole in (word, space + word):
            if len(whole) > 1 and len(tokens) < n_vocab - n_special:
                tokens.append(whole)
                merges.append(f"{whole[:-1]} {whole[-1]}")
        if len(tokens) == n_vocab - n_special:
            break
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(7))]
    special.append("<|eot_id|>")
    special += [f"<|reserved_special_token_{i}|>" for i in range(7, 7 + n_special - len(special))]
    kinds = len(tokens) * [gguf.TokenType.NORMAL] + n_special * [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens + special)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + special.index("<|eot_id|>"))


def _words() -> Iterator[str]:
    """a, b, … z, aa, ab, … without end: every word's start comes before it."""
    for length in itertools.count(1):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))


def _byte_letters() -> list[str]:
    """The character that stands for each byte in byte-pair vocabularies: printable ones for themselves, the others
    from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(_N_BYTES)]
