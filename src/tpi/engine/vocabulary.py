"""Text to tokens and tokens to bytes, through libllama's vocabulary API.

Owns the C model that holds the vocabulary (no weights), until ``close()``. Master only. libllama's log is silenced for
the whole process; opening is for one thread at a time, everything else any thread may call while nobody closes.

libllama aborts the process on some damaged vocabularies; what it would abort on is looked for beforehand.
"""

import collections
import ctypes
import functools
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from tpi.engine.libllama import load_vocabulary_model, vocabulary_functions
from tpi.errors import MemoryBudgetError, ModelFileError, UnsupportedModelError, UsageError
from tpi.gguf.strings import read_strings
from tpi.hub.vocabulary import NORMAL_FORM

MAX_TEXT_BYTES = 1 << 22
"""The longest text that is tokenized at once: about a million tokens."""

# Some byte-pair vocabularies split text with std::regex, which recurses once per character of a run (some 340 bytes of
# stack each) and ends the process when the stack ends. Longer texts than this get a thread with a stack to match.
_OWN_STACK_BYTES = 1 << 13
_STACK_PER_BYTE = 512

_KINDS = ("llama", "gpt2", "gemma4")
_OF_ANOTHER_KIND = b"whitespace"
"""What splits texts so that spaces come to where libllama aborts on them."""
_SENTENCEPIECE = 1
_UNKNOWN_OR_CONTROL = 1 << 0 | 1 << 3
_LOAD_MODE_MMAP = 1
_LOG_WARNING = 3
_NormalForm: TypeAlias = Literal["NFC", "NFD", "NFKC", "NFKD"]
_NORMAL_FORMS: dict[bytes, _NormalForm] = {b"NFC": "NFC", b"NFD": "NFD", b"NFKC": "NFKC", b"NFKD": "NFKD"}


class Vocabulary:
    """The tokenizer of one model file.

    Raises:
        ModelFileError: the file is not readable, has no tokenizer, or a damaged one.
        UnsupportedModelError: the tokenizer is of a kind that no text-generating model here uses.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._stack_size = path, threading.Lock()
        self._normal_form = _check_tokens(path)
        self._lib = vocabulary_functions()
        self._model: int | None = load_vocabulary_model(self._lib, path)
        self._vocab: int = self._lib.llama_model_get_vocab(self._model)
        try:
            self._check_vocabulary()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the C model; nothing else may be called afterwards. May be called again."""
        if self._model is not None:
            self._lib.llama_model_free(self._model)
            self._model = None

    @functools.cached_property
    def n_tokens(self) -> int:
        """Number of tokens; their ids are 0 to ``n_tokens - 1``."""
        return int(self._lib.llama_vocab_n_tokens(self._handle))

    @functools.cached_property
    def bos_id(self) -> int | None:
        """The token that begins a text, None if there is none."""
        return self._id_or_none(self._lib.llama_vocab_bos(self._handle))

    @functools.cached_property
    def eos_id(self) -> int | None:
        """The token that ends a text, None if there is none."""
        return self._id_or_none(self._lib.llama_vocab_eos(self._handle))

    @functools.cached_property
    def eot_id(self) -> int | None:
        """The token that ends a turn of a chat, None if there is none."""
        return self._id_or_none(self._lib.llama_vocab_eot(self._handle))

    @functools.cached_property
    def add_bos(self) -> bool:
        """Whether the model expects every text to begin with the token ``bos_id``."""
        return bool(self._lib.llama_vocab_get_add_bos(self._handle))

    @functools.cached_property
    def adds_space_prefix(self) -> bool:
        """Whether a text is tokenized as if a space stood before it (and after each special token)."""
        tokens = self.tokenize("a", add_special=False, parse_special=False)
        return bool(tokens) and self.token_bytes(tokens[0]).startswith(b" ")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of a text.

        Args:
            text: characters that UTF-8 cannot hold (lone surrogates) become question marks.
            add_special: put the begin (and end) token around it, if the model wants them.
            parse_special: text like ``<|eot_id|>`` becomes that token. Never for text that a user wrote.

        Raises:
            UsageError: the text is longer than ``MAX_TEXT_BYTES``.
            MemoryBudgetError: the system gives no stack for a text of this length.
        """
        if self._normal_form is not None:
            text = unicodedata.normalize(self._normal_form, text)
        data = text.encode("utf-8", "replace")
        if len(data) > MAX_TEXT_BYTES:
            raise UsageError(f"the text has {len(data):,} bytes, at most {MAX_TEXT_BYTES:,} can be read at once")
        if len(data) <= _OWN_STACK_BYTES:
            return self._tokenize(data, add_special, parse_special)
        return self._with_stack(_STACK_PER_BYTE * len(data), lambda: self._tokenize(data, add_special, parse_special))

    def tokenize_on(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """As ``tokenize``, of text that goes on: no space is put before it.

        A line break in front takes that space, and its tokens are taken off again.
        """
        if self.adds_space_prefix:
            front = self.tokenize("\n", add_special=False, parse_special=False)
            tokens = self.tokenize("\n" + text, add_special=add_special, parse_special=parse_special)
            if tokens[: len(front)] == front:
                return tokens[len(front) :]
        return self.tokenize(text, add_special=add_special, parse_special=parse_special)

    def _with_stack(self, n_bytes: int, run: Callable[[], list[int]]) -> list[int]:
        """What ``run`` gives, or raises, in a thread with a stack of so many bytes and some."""
        done: Future[list[int]] = Future()

        def work() -> None:
            try:
                done.set_result(run())
            except BaseException as error:
                done.set_exception(error)

        worker = threading.Thread(target=work, name="tokenize")
        # The size is the process's: one at a time may set it, and only until the thread has begun. One that starts
        # elsewhere meanwhile gets address space, no memory.
        with self._stack_size:
            previous = threading.stack_size(n_bytes + (8 << 20) & ~0xFFFF)
            try:
                worker.start()
            except RuntimeError as error:
                n_text = n_bytes // _STACK_PER_BYTE
                raise MemoryBudgetError(f"no memory to read a text of {n_text:,} bytes: make it shorter") from error
            finally:
                threading.stack_size(previous)
        worker.join()
        return done.result()

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        # A token is at least one byte, but for the space before a text and the two around it.
        capacity = len(data) + 16
        for _ in range(2):
            tokens = (ctypes.c_int32 * capacity)()
            n = self._lib.llama_tokenize(self._handle, data, len(data), tokens, capacity, add_special, parse_special)
            if n >= 0:
                return list(tokens[:n])
            capacity = -n
        raise AssertionError("libllama asked twice for more room for the same text")

    def token_bytes(self, token_id: int, *, special: bool = False) -> bytes:
        """The bytes that a token adds to the text, often part of a character only.

        Args:
            token_id: 0 to ``n_tokens - 1``.
            special: give special tokens as their text instead of as nothing.
        """
        self._check_id(token_id)
        capacity = 32
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            n = self._lib.llama_token_to_piece(self._handle, token_id, buffer, capacity, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            capacity = -n

    @functools.cached_property
    def longest_bytes(self) -> int:
        """Bytes of the token that adds most to a text. Looks at all of them, once."""
        return max(1, *(len(self.token_bytes(token_id, special=True)) for token_id in range(self.n_tokens)))

    def token_text(self, token_id: int) -> str:
        """A token as the model file writes it (``<|eot_id|>``, ``Ġthe``)."""
        self._check_id(token_id)
        text: bytes = self._lib.llama_vocab_get_text(self._handle, token_id)
        return text.decode("utf-8", "replace")

    def is_end_of_generation(self, token_id: int) -> bool:
        """Whether this token says that the answer is complete (end of text, of turn, of message)."""
        self._check_id(token_id)
        return bool(self._lib.llama_vocab_is_eog(self._handle, token_id))

    def is_special(self, token_id: int) -> bool:
        """Whether this token means something to the model but is no text (control and unknown tokens)."""
        self._check_id(token_id)
        return bool(self._attributes(token_id) & _UNKNOWN_OR_CONTROL)

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """By their texts."""
        return {self.token_text(token_id): token_id for token_id in range(self.n_tokens) if self.is_special(token_id)}

    def special_spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where ``tokenize(parse_special=True)`` could see a special token: ``(start, end)``, overlaps included."""
        if self._special_pattern is not None:
            for match in self._special_pattern.finditer(text):
                yield match.span(1)

    @functools.cached_property
    def _special_pattern(self) -> re.Pattern[str] | None:
        if not self.special_tokens:
            return None
        # A lookahead consumes nothing, so that every start is tried; the longest text first.
        longest_first = sorted(self.special_tokens, key=lambda text: (-len(text), text))
        return re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")

    @property
    def _handle(self) -> int:
        if self._model is None:
            raise ValueError("the vocabulary is closed")
        return self._vocab

    def _attributes(self, token_id: int) -> int:
        return int(self._lib.llama_vocab_get_attr(self._handle, token_id))

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < self.n_tokens:
            raise ValueError(f"token {token_id} is outside of the vocabulary of {self.n_tokens}")

    def _id_or_none(self, token_id: int) -> int | None:
        return token_id if 0 <= token_id < self.n_tokens else None

    def _check_vocabulary(self) -> None:
        """Finds what would make libllama abort the process later, while tokenizing."""
        if self.add_bos and self.bos_id is None:
            raise ModelFileError(f"{self._path} wants a begin token before every text, but names none")
        if self._lib.llama_vocab_get_add_eos(self._vocab) and self.eos_id is None:
            raise ModelFileError(f"{self._path} wants an end token after every text, but names none")
        if self._lib.llama_vocab_type(self._vocab) == _SENTENCEPIECE:
            texts = {self._lib.llama_vocab_get_text(self._vocab, i) for i in range(self.n_tokens)}
            missing = [b for b in range(256) if b"<0x%02X>" % b not in texts and bytes([b]) not in texts]
            if missing:
                raise ModelFileError(
                    f"the tokenizer of {self._path} has no token for byte {missing[0]} and {len(missing) - 1} others"
                )


def _check_tokens(path: Path) -> _NormalForm | None:
    """Finds what would make libllama abort the process while it loads. Returns the form that texts get before."""
    strings = read_strings(path, ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", NORMAL_FORM))
    tokens = strings.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelFileError(f"{path} has no tokenizer (tokenizer.ggml.tokens): it holds no model that reads text")
    kind = strings.get("tokenizer.ggml.model", [b""])[0].decode("utf-8", "replace")
    if kind not in _KINDS:
        raise UnsupportedModelError(f"{path} has a tokenizer of kind {kind!r}; supported are {', '.join(_KINDS)}")
    if kind == "gpt2" and strings.get("tokenizer.ggml.pre", [b""])[0] == _OF_ANOTHER_KIND:
        raise ModelFileError(
            f"the tokenizer of {path} is damaged: one of kind gpt2 splits no texts at white space alone"
        )
    # libllama gives empty tokens this name, which another token might have.
    names = [token or b"[EMPTY_%d]" % index for index, token in enumerate(tokens)]
    name, count = collections.Counter(names).most_common(1)[0]
    if count > 1:
        text = name.decode("utf-8", "replace")
        raise ModelFileError(f"the tokenizer of {path} is damaged: it has the token {text!r} {count} times")
    return _NORMAL_FORMS.get(strings.get(NORMAL_FORM, [b""])[0])
