"""Turns quantised values into float32 with ggml's own conversion."""

import ctypes

from tpi.runtime.ggml.binding import TYPE_F32, ggml
from tpi.runtime.protocols import Float32Array


def to_float(type_id: int, data: bytes, out: Float32Array) -> None:
    """Converts the row ``data`` of GGUF type ``type_id`` into ``out``, f32 [n_columns], which stays the caller's."""
    if type_id == TYPE_F32:
        ctypes.memmove(out.ctypes.data, data, out.nbytes)
        return
    traits = ggml().base.ggml_get_type_traits(type_id).contents
    traits.to_float(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), out.ctypes.data, out.size)
