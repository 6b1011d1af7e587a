"""A folder's vocabulary as the entries of a GGUF file, so that libllama tokenizes as the folder's own files say.

``tokenizer.json`` holds pairs of pieces in the order in which they are merged. Where text is split into bytes, GGUF
keeps these pairs, and the name of the expression by which texts are split before; where it is split into characters,
with bytes for what has no token, GGUF has a score for each token instead, the higher the earlier its pair. An older
``tokenizer.model`` has these scores itself. Takes some hundred MB for a large vocabulary; any thread.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from tpi.errors import ModelFileError, UnsupportedModelError
from tpi.gguf.writer import Written
from tpi.hub.config import read_json
from tpi.hub.sentencepiece import read_pieces
from tpi.hub.talk import SENTENCEPIECE, TOKENIZER, TOKENIZER_CONFIG

NORMAL_FORM = "tpi.normal_form"
"""The entry, no other program's, that says which of Unicode's normal forms a text gets before it is tokenized."""
_PREFIX = "tokenizer.ggml."
_LOWEST = -1e9
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SEEM_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused\d*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)
_FORMS = ("NFC", "NFD", "NFKC", "NFKD")
_SPECIALS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_GEMMA_4_TEXTS = ("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>")
"""Marks that readers of answers must see."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_NAMES = {
    rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+{_REST}": "llama-bpe",
    rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+{_REST}": "qwen2",
    rf"{_CONTRACTIONS}|{_START}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+{_REST}": "qwen35",
    rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
    rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?"
    r"[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "gpt-4o",
}
"""llama.cpp's names for the expressions that texts are split by."""


class _Type(IntEnum):
    """What a token is, by the numbers of GGUF files."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass
class _Tokens:
    """Texts, scores and types by number."""

    texts: list[bytes]
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)

    @classmethod
    def empty(cls, n: int) -> "_Tokens":
        return cls([b"[PAD%d]" % i for i in range(n)], [_LOWEST] * n, [int(_Type.UNUSED)] * n)

    def put(self, number: int, text: str, kind: _Type, score: float = 0.0) -> None:
        """Those beyond the model's vocabulary are left out."""
        if 0 <= number < len(self.texts):
            self.texts[number] = text.encode("utf-8", "replace")
            self.types[number], self.scores[number] = kind, score

    def entries(self) -> dict[str, Written]:
        return {
            f"{_PREFIX}tokens": self.texts,
            f"{_PREFIX}scores": np.array(self.scores, np.float32),
            f"{_PREFIX}token_type": np.array(self.types, np.int32),
        }


def vocabulary_entries(path: Path, n_tokens: int, architecture: str) -> dict[str, Written]:
    """Everything of a GGUF file that libllama wants to tokenize; ``n_tokens`` are in the table of embeddings.

    Raises:
        ModelFileError: the folder ``path`` has no tokenizer, or a damaged one.
        UnsupportedModelError: it is of a kind that is not known.
    """
    config = read_json(path / TOKENIZER_CONFIG) if (path / TOKENIZER_CONFIG).is_file() else {}
    if (path / TOKENIZER).is_file():
        tokenizer = _read_tokenizer(path / TOKENIZER)
    elif (path / SENTENCEPIECE).is_file():
        tokenizer = {"added_tokens": _added_in(config)}
    else:
        raise ModelFileError(f"{path} has no {TOKENIZER} and no {SENTENCEPIECE}: it is incomplete, fetch it again")
    added = [entry for entry in tokenizer.get("added_tokens") or () if _is_added(entry)]
    try:
        if "model" in tokenizer:
            found = _of_pairs(path / TOKENIZER, tokenizer, added, n_tokens, architecture)
        else:
            found = _of_pieces(path / SENTENCEPIECE, added, n_tokens)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(f"{path}: its tokenizer is damaged ({error!r:.100}); fetch it again") from error
    specials = _specials(path, tokenizer, config, added, n_tokens)
    if architecture == "gemma4":
        specials[f"{_PREFIX}add_bos_token"] = True
    forms = [form for form in _FORMS if list(_steps(tokenizer.get("normalizer"), form))]
    normal: dict[str, Written] = {NORMAL_FORM: forms[0]} if forms else {}
    return {"general.architecture": architecture, **found, **specials, **normal}


def _read_tokenizer(path: Path) -> dict[str, Any]:
    found = read_json(path)
    model = found.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        kind = model.get("type") if isinstance(model, dict) else None
        raise UnsupportedModelError(f"{path} has a tokenizer of kind {kind!r:.40}; BPE alone can be used")
    return found


def _of_pairs(
    path: Path, tokenizer: dict[str, Any], added: list[dict[str, Any]], n_tokens: int, architecture: str
) -> dict[str, Written]:
    model = tokenizer["model"]
    pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    vocabulary: dict[str, int] = model["vocab"]
    is_bytes = bool(list(_steps(tokenizer.get("pre_tokenizer"), "ByteLevel")))
    tokens = _Tokens.empty(n_tokens)
    unknown = model.get("unk_token")
    for text, number in vocabulary.items():
        is_byte = not is_bytes and _BYTE.fullmatch(text)
        tokens.put(number, text, _Type.BYTE if is_byte else _Type.UNKNOWN if text == unknown else _Type.NORMAL)
    is_gemma_4 = architecture == "gemma4"
    _put_added(tokens, added, _GEMMA_4_TEXTS if is_gemma_4 else (), unknown if not is_bytes else None)
    if is_bytes or is_gemma_4:
        kind = {"model": "gemma4"} if is_gemma_4 else {"model": "gpt2", "pre": _name_of_split(path, tokenizer)}
        merges = [b" ".join(part.replace(" ", "\u0120").encode() for part in pair) for pair in pairs]
        found = {**_named(kind), **tokens.entries(), f"{_PREFIX}merges": merges}
        if is_gemma_4:
            return {**found, f"{_PREFIX}add_space_prefix": False}
        del found[f"{_PREFIX}scores"]
        return found
    if not model.get("byte_fallback"):
        raise UnsupportedModelError(f"{path} has a tokenizer that is neither of bytes nor falls back to them")
    for rank, pair in enumerate(reversed(pairs)):
        number = vocabulary.get("".join(pair), -1)
        if 0 <= number < n_tokens:
            tokens.scores[number] = float(rank - len(pairs))
    return {
        **_named({"model": "llama", "pre": "default"}),
        **tokens.entries(),
        f"{_PREFIX}add_space_prefix": _begins_with_space(tokenizer),
    }


def _named(texts: dict[str, str]) -> dict[str, Written]:
    return {f"{_PREFIX}{name}": text for name, text in texts.items()}


def _put_added(tokens: _Tokens, added: list[dict[str, Any]], texts: tuple[str, ...], unknown: str | None) -> None:
    """Tokens that are found in texts before these are split."""
    for entry in added:
        text = entry["content"]
        if text == unknown:
            tokens.put(entry["id"], text, _Type.UNKNOWN)
        elif (entry.get("special") or _SEEM_SPECIAL.fullmatch(text)) and text not in texts:
            tokens.put(entry["id"], text, _Type.CONTROL)
        else:
            tokens.put(entry["id"], text.replace("\u2581", " "), _Type.USER_DEFINED)


def _steps(found: Any, kind: str) -> Iterator[dict[str, Any]]:
    """The steps of a kind in a normalizer, a pre-tokenizer or whatever else may be a sequence of such."""
    if not isinstance(found, dict):
        return
    if found.get("type") == kind:
        yield found
    for name in ("pretokenizers", "normalizers", "processors"):
        for inner in found.get(name) or ():
            yield from _steps(inner, kind)


def _name_of_split(path: Path, tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the way in which texts are split.

    Raises:
        UnsupportedModelError: it has none here.
    """
    splits = list(_steps(tokenizer.get("pre_tokenizer"), "Split"))
    if not splits and next(_steps(tokenizer.get("pre_tokenizer"), "ByteLevel")).get("use_regex", True):
        return "gpt-2"
    expression = splits[0]["pattern"].get("Regex", "") if len(splits) == 1 else ""
    name = _NAMES.get(expression)
    if name == "llama-bpe" and not tokenizer["model"].get("ignore_merges"):
        return "dbrx"  # the same expression, and pieces are merged even where the whole is a token
    if name is None:
        raise UnsupportedModelError(f"{path} splits texts in a way that is not known: {expression!r:.120}")
    return name


def _begins_with_space(tokenizer: dict[str, Any]) -> bool:
    """Whether a text is read as if a space stood before it."""
    marked = any(step.get("prepend") for step in _steps(tokenizer.get("normalizer"), "Prepend"))
    schemes = [
        step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        for step in _steps(tokenizer.get("pre_tokenizer"), "Metaspace")
    ]
    return marked or any(scheme != "never" for scheme in schemes)


def _is_added(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("id"), int) and isinstance(entry.get("content"), str)


def _added_in(config: dict[str, Any]) -> list[dict[str, Any]]:
    """As an older ``tokenizer_config.json`` has them."""
    found = config.get("added_tokens_decoder")
    items = found.items() if isinstance(found, dict) else ()
    return [{**entry, "id": int(number)} for number, entry in items if number.isdecimal() and isinstance(entry, dict)]


def _specials(
    path: Path, tokenizer: dict[str, Any], config: dict[str, Any], added: list[dict[str, Any]], n_tokens: int
) -> dict[str, Written]:
    """Which tokens begin and end texts, and whether they do so always."""
    numbers = {entry["content"]: entry["id"] for entry in added}
    model = read_json(path / "config.json")
    text, adds, found = model.get("text_config"), _adds(tokenizer, config), dict[str, int]()
    for name in _SPECIALS:
        content = config.get(f"{name}_token")
        content = content.get("content") if isinstance(content, dict) else content
        number = numbers.get(content) if isinstance(content, str) else None
        for holder in (model, text if isinstance(text, dict) else {}):
            number = holder.get(f"{name}_token_id") if number is None else number
        if isinstance(number, int) and 0 <= number < n_tokens:
            found[name] = number
    entries: dict[str, Written] = {f"{_PREFIX}{_KEYS.get(name, name)}_token_id": found[name] for name in found}
    for name, number in zip(("eot", "eom"), _other_ends(path, found, n_tokens), strict=False):
        entries[f"{_PREFIX}{name}_token_id"] = number
    entries |= {f"{_PREFIX}add_{name}_token": value and name in found for name, value in adds.items()}
    return entries


_KEYS = {"unk": "unknown", "sep": "seperator", "pad": "padding"}
"""Names in GGUF files, where they are others."""


def _other_ends(path: Path, found: dict[str, int], n_tokens: int) -> list[int]:
    """Tokens that end answers, beside the one that ends texts."""
    file = path / "generation_config.json"
    ends = read_json(file).get("eos_token_id") if file.is_file() else None
    listed = ends if isinstance(ends, list) else [ends]
    return [end for end in listed if isinstance(end, int) and 0 <= end < n_tokens and end != found.get("eos")]


def _adds(tokenizer: dict[str, Any], config: dict[str, Any]) -> dict[str, bool]:
    """Whether the token that begins texts, and the one that ends them, are put there."""
    adds = dict.fromkeys(("bos", "eos"), False) if "model" in tokenizer else {}
    adds |= {name: value for name in ("bos", "eos") if isinstance(value := config.get(f"add_{name}_token"), bool)}
    processor = tokenizer.get("post_processor")
    if list(_steps(processor, "ByteLevel")):
        adds |= {"bos": False, "eos": False}
    for step in _steps(processor, "TemplateProcessing"):
        single = [next(iter(part)) for part in step.get("single") or () if isinstance(part, dict) and part]
        if len(single) > 1:
            adds |= {"bos": single[0] == "SpecialToken", "eos": single[-1] == "SpecialToken"}
    return adds


def _of_pieces(path: Path, added: list[dict[str, Any]], n_tokens: int) -> dict[str, Written]:
    model, tokens = read_pieces(path), _Tokens.empty(n_tokens)
    for number, piece in enumerate(model.pieces):
        tokens.put(number, piece.text, _Type(piece.type), piece.score)
    _put_added(tokens, added, (), next((piece.text for piece in model.pieces if piece.type == _Type.UNKNOWN), None))
    return {
        **_named({"model": "llama", "pre": "default"}),
        **tokens.entries(),
        f"{_PREFIX}add_space_prefix": model.begins_with_space,
    }
