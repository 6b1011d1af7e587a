"""The part of libllama that reads vocabularies: its C functions' types, opening a file, its log.

Holds no state but the loaded library. Master only; opening is for one thread at a time, since libllama's log is global.
"""

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from tpi.errors import ModelFileError
from tpi.native.libraries import LogCallback, load_llama, silent_log

_LOAD_MODE_MMAP = 1
_LOG_WARNING = 3
_Pointer, _Text, _Int, _Ids = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32)


class _ModelParams(ctypes.Structure):
    """``llama_model_params`` of the pinned libllama; only the named defaults are ever changed."""

    _fields_ = (
        ("devices", _Pointer),
        ("tensor_buft_overrides", _Pointer),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", _Pointer),
        ("progress_callback", _Pointer),
        ("progress_callback_user_data", _Pointer),
        ("kv_overrides", _Pointer),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
        ("load_mtp", ctypes.c_bool),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_log_set": (None, [LogCallback, _Pointer]),
    "llama_model_default_params": (_ModelParams, []),
    "llama_model_load_from_file": (_Pointer, [_Text, _ModelParams]),
    "llama_model_free": (None, [_Pointer]),
    "llama_model_get_vocab": (_Pointer, [_Pointer]),
    "llama_vocab_type": (ctypes.c_int, [_Pointer]),
    "llama_vocab_n_tokens": (_Int, [_Pointer]),
    "llama_vocab_get_text": (_Text, [_Pointer, _Int]),
    "llama_vocab_get_attr": (ctypes.c_int, [_Pointer, _Int]),
    "llama_vocab_is_eog": (ctypes.c_bool, [_Pointer, _Int]),
    "llama_vocab_bos": (_Int, [_Pointer]),
    "llama_vocab_eos": (_Int, [_Pointer]),
    "llama_vocab_eot": (_Int, [_Pointer]),
    "llama_vocab_get_add_bos": (ctypes.c_bool, [_Pointer]),
    "llama_vocab_get_add_eos": (ctypes.c_bool, [_Pointer]),
    # vocabulary, text, bytes of text, tokens, room for tokens, add special, parse special
    "llama_tokenize": (_Int, [_Pointer, _Text, _Int, _Ids, _Int, ctypes.c_bool, ctypes.c_bool]),
    # vocabulary, token, buffer, room, leading spaces to skip, show special
    "llama_token_to_piece": (_Int, [_Pointer, _Int, _Text, _Int, _Int, ctypes.c_bool]),
}


@functools.cache
def vocabulary_functions() -> ctypes.CDLL:
    """libllama with the types of the functions declared that are used here.

    Raises:
        KernelError: libllama is missing or of another version.
    """
    lib = load_llama()
    for name, (restype, argtypes) in _SIGNATURES.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = restype, argtypes
    return lib


def load_vocabulary_model(lib: ctypes.CDLL, path: Path) -> int:
    """A ``llama_model*`` with the vocabulary and nothing else; the caller frees it. Silences libllama for good.

    Raises:
        ModelFileError: libllama cannot read it, with its reason.
    """
    complaints: list[str] = []

    def note(level: int, text: bytes, _: int) -> None:
        if level >= _LOG_WARNING:
            complaints.append(text.decode("utf-8", "replace"))

    params = lib.llama_model_default_params()
    params.vocab_only = True
    params.load_mode = _LOAD_MODE_MMAP
    params.n_gpu_layers = 0
    callback = LogCallback(note)
    lib.llama_log_set(callback, None)
    try:
        model: int | None = lib.llama_model_load_from_file(os.fsencode(path), params)
    finally:
        lib.llama_log_set(silent_log(), None)
    if not model:
        raise ModelFileError(f"the tokenizer of {path} cannot be read: {_reason(complaints)}")
    return model


def _reason(complaints: list[str]) -> str:
    """The complaint that says most, without the names of C functions before it."""
    for text in complaints:
        _, found, reason = text.partition("error loading model: ")
        if found:
            return " ".join(reason.split())
    return " ".join(complaints[-1].split()) if complaints else "libllama gives no reason"
