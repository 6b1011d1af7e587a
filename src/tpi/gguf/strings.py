"""Reads strings and arrays of strings (a vocabulary's tokens) out of a GGUF file.

Apart from the reader, because these arrays are long and only the master needs one, once. Any thread.
"""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

from tpi.errors import ModelFileError
from tpi.gguf.reader import _ARRAY, _STRING, _check_start, _functions, _InitParams


def read_strings(path: Path, keys: Sequence[str]) -> dict[str, list[bytes]]:
    """The strings of each key, a single string as a list of one; keys that are missing or hold no strings are left out.

    Each string goes up to its first zero byte, as C sees it.

    Raises:
        ModelFileError: the file is missing, not GGUF, damaged or truncated.
    """
    _check_start(path)
    lib = _functions()
    lib.gguf_find_key.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    lib.gguf_find_key.restype = ctypes.c_int64
    lib.gguf_get_arr_str.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t]
    lib.gguf_get_arr_str.restype = ctypes.c_char_p
    context = lib.gguf_init_from_file(os.fsencode(path), _InitParams(no_alloc=True, ctx=None))
    if not context:
        raise ModelFileError(f"{path} is damaged or truncated: its GGUF header cannot be read; fetch it again")
    try:
        found = ((key, lib.gguf_find_key(context, key.encode())) for key in keys)
        return {key: strings for key, index in found if index >= 0 if (strings := _strings(lib, context, index))}
    finally:
        lib.gguf_free(context)


def _strings(lib: ctypes.CDLL, context: int, index: int) -> list[bytes]:
    kind = lib.gguf_get_kv_type(context, index)
    if kind == _STRING:
        return [lib.gguf_get_val_str(context, index) or b""]
    if kind != _ARRAY or lib.gguf_get_arr_type(context, index) != _STRING:
        return []
    return [lib.gguf_get_arr_str(context, index, i) or b"" for i in range(lib.gguf_get_arr_n(context, index))]
