"""The demo model's tokenizer: byte-level BPE in the form that GGUF calls "gpt2", trained here.

Pure Python, no state outside the objects. Text is cut by GPT-2's pattern, each piece becomes UTF-8 bytes, each byte one
of 256 printable characters, and the merges are applied in the order in which they were learned.
"""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

SAVED = Path(__file__).parent / "tokenizer.json"
SPECIALS = ("<|bos|>", "<|end|>", "<|user|>", "<|assistant|>")
BOS, END, USER, ASSISTANT = range(4)
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def byte_characters() -> list[str]:
    """For each byte value the character that stands for it (GPT-2's table: printable bytes are themselves)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(value) if value in printable else chr(next(others)) for value in range(256)]


@cache
def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def pieces(text: str) -> Iterator[str]:
    r"""Cuts as GPT-2's pattern does: ``'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+``."""
    at = 0
    while at < len(text):
        contraction = next((form for form in _CONTRACTIONS if text.startswith(form, at)), None)
        if contraction:
            end = at + len(contraction)
        else:
            start = at + 1 if text[at] == " " and at + 1 < len(text) else at
            kind = _kind(text[start])
            if kind == "space":
                start, kind = at, "space"
            end = start
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
            if kind == "space" and end < len(text) and end - at > 1:
                end -= 1
        yield text[at:end]
        at = end


@dataclass
class Tokenizer:
    """Specials, then the 256 bytes, then one token for each merge."""

    merges: list[tuple[str, str]]
    ids: dict[str, int] = field(init=False)
    tokens: list[str] = field(init=False)
    _ranks: dict[tuple[str, str], int] = field(init=False)
    _known: dict[str, list[int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens = [*SPECIALS, *byte_characters(), *(left + right for left, right in self.merges)]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; special tokens are never recognised in it."""
        numbers: list[int] = []
        for piece in pieces(text):
            if piece not in self._known:
                self._known[piece] = [self.ids[symbol] for symbol in self._merge(piece)]
            numbers += self._known[piece]
        return numbers

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of token ids; specials are left out, broken UTF-8 becomes replacement characters."""
        values = {character: value for value, character in enumerate(byte_characters())}
        text = "".join(self.tokens[number] for number in numbers if number >= len(SPECIALS))
        return bytes(values[character] for character in text).decode(errors="replace")

    def conversation(self, turns: Iterable[tuple[str, str]]) -> tuple[list[int], list[bool]]:
        """Ids as the chat template lays them out, and which of them the assistant had to produce."""
        numbers, own = [BOS], [False]
        for role, text in turns:
            body = [*self.encode(text), END]
            numbers += [ASSISTANT if role == "assistant" else USER, *body]
            own += [False, *[role == "assistant"] * len(body)]
        return numbers, own

    def save(self, path: Path) -> None:
        """Writes the merges as JSON."""
        path.write_text(json.dumps([" ".join(pair) for pair in self.merges], ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Reads what ``save`` wrote."""
        lines: list[str] = json.loads(path.read_text())
        return cls([(left, right) for left, right in (line.split(" ") for line in lines)])

    def _merge(self, piece: str) -> list[str]:
        table = byte_characters()
        symbols = [table[value] for value in piece.encode()]
        while len(symbols) > 1:
            best = min(
                pairwise(symbols),
                key=lambda pair: self._ranks.get(pair, len(self._ranks)),
            )
            if best not in self._ranks:
                break
            symbols = _join(symbols, best)
        return symbols


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learns merges until the vocabulary has that many tokens; ties go to the pair that sorts first."""
    table = byte_characters()
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(pieces(text))
    rows = [([table[value] for value in piece.encode()], count) for piece, count in sorted(counts.items())]
    merges: list[tuple[str, str]] = []
    known = {*SPECIALS, *table}
    while len(SPECIALS) + 256 + len(merges) < vocabulary:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in rows:
            for pair in pairwise(symbols):
                pairs[pair] += count
        fresh = {pair: count for pair, count in pairs.items() if pair[0] + pair[1] not in known}
        best = min(fresh, key=lambda pair: (-fresh[pair], pair))
        merges.append(best)
        known.add(best[0] + best[1])
        rows = [(_join(symbols, best), count) for symbols, count in rows]
        rows = [(symbols, count) for symbols, count in rows if len(symbols) > 1]
    return Tokenizer(merges)


def _join(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    if pair[0] not in symbols:
        return symbols
    joined: list[str] = []
    at = 0
    while at < len(symbols):
        if at + 1 < len(symbols) and (symbols[at], symbols[at + 1]) == pair:
            joined.append(pair[0] + pair[1])
            at += 2
        else:
            joined.append(symbols[at])
            at += 1
    return joined
