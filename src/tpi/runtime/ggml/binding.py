"""The C structs and functions of ggml that are used, declared next to their types. No logic.

The structs are those of the version that ``native.libraries`` insists on.
"""

import ctypes
import functools
from ctypes import c_bool, c_char, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass

from tpi.native.libraries import load_ggml

PREC_F32 = 10
ROPE_NORMAL = 0
ROPE_NEOX = 2
STATUS_SUCCESS = 0
STATUS_ABORTED = 1
TYPE_F32, TYPE_F16, TYPE_I32, TYPE_I64 = 0, 1, 26, 27


class Tensor(ctypes.Structure):
    """``struct ggml_tensor``."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", c_int32 * 16),
        ("flags", c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
        ("extra", c_void_p),
        ("padding", c_char * 8),
    )


class InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


class ComputePlan(ctypes.Structure):
    """``struct ggml_cplan``."""

    _fields_ = (
        ("work_size", c_size_t),
        ("work_data", c_void_p),
        ("n_threads", c_int),
        ("threadpool", c_void_p),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("use_ref", c_bool),
    )


class ThreadpoolParams(ctypes.Structure):
    """``struct ggml_threadpool_params``."""

    _fields_ = (
        ("cpumask", c_bool * 512),
        ("n_threads", c_int),
        ("prio", c_int),
        ("poll", c_uint32),
        ("strict_cpu", c_bool),
        ("paused", c_bool),
    )


class TypeTraits(ctypes.Structure):
    """``struct ggml_type_traits``."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_elements", c_int64),
        ("block_elements_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("from_float_ref", c_void_p),
    )


class CpuTypeTraits(ctypes.Structure):
    """``struct ggml_type_traits_cpu``."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)),
        ("vec_dot", c_void_p),
        ("vec_dot_type", c_int),
        ("nrows", c_int64),
    )


_T = c_void_p
_BASE = {
    "ggml_quantize_init": (None, [c_int]),
    "ggml_quantize_requires_imatrix": (c_bool, [c_int]),
    "ggml_quantize_chunk": (c_size_t, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead_custom": (c_size_t, [c_size_t, c_bool]),
    "ggml_new_tensor": (_T, [c_void_p, c_int, c_int, ctypes.POINTER(c_int64)]),
    "ggml_new_tensor_1d": (_T, [c_void_p, c_int, c_int64]),
    "ggml_new_tensor_2d": (_T, [c_void_p, c_int, c_int64, c_int64]),
    "ggml_is_contiguous": (c_bool, [_T]),
    "ggml_cont": (_T, [c_void_p, _T]),
    "ggml_cpy": (_T, [c_void_p, _T, _T]),
    "ggml_transpose": (_T, [c_void_p, _T]),
    "ggml_view_2d": (_T, [c_void_p, _T, c_int64, c_int64, c_size_t, c_size_t]),
    "ggml_view_3d": (_T, [c_void_p, _T, c_int64, c_int64, c_int64, c_size_t, c_size_t, c_size_t]),
    "ggml_view_4d": (_T, [c_void_p, _T, *[c_int64] * 4, *[c_size_t] * 4]),
    "ggml_reshape_2d": (_T, [c_void_p, _T, c_int64, c_int64]),
    "ggml_reshape_3d": (_T, [c_void_p, _T, c_int64, c_int64, c_int64]),
    "ggml_reshape_4d": (_T, [c_void_p, _T, c_int64, c_int64, c_int64, c_int64]),
    "ggml_repeat_4d": (_T, [c_void_p, _T, c_int64, c_int64, c_int64, c_int64]),
    "ggml_set_inplace": (_T, [c_void_p, _T, _T, c_size_t, c_size_t, c_size_t, c_size_t]),
    "ggml_pad": (_T, [c_void_p, _T, c_int, c_int, c_int, c_int]),
    "ggml_permute": (_T, [c_void_p, _T, c_int, c_int, c_int, c_int]),
    "ggml_add": (_T, [c_void_p, _T, _T]),
    "ggml_mul": (_T, [c_void_p, _T, _T]),
    "ggml_mul_mat": (_T, [c_void_p, _T, _T]),
    "ggml_mul_mat_id": (_T, [c_void_p, _T, _T, _T]),
    "ggml_add_id": (_T, [c_void_p, _T, _T, _T]),
    "ggml_div": (_T, [c_void_p, _T, _T]),
    "ggml_clamp": (_T, [c_void_p, _T, c_float, c_float]),
    "ggml_fill": (_T, [c_void_p, _T, c_float]),
    "ggml_sum_rows": (_T, [c_void_p, _T]),
    "ggml_soft_max": (_T, [c_void_p, _T]),
    "ggml_argsort_top_k": (_T, [c_void_p, _T, c_int]),
    "ggml_get_rows": (_T, [c_void_p, _T, _T]),
    **{f"ggml_{name}": (_T, [c_void_p, _T]) for name in ("sigmoid", "silu", "gelu", "softplus", "tanh", "relu", "sqr")},
    "ggml_concat": (_T, [c_void_p, _T, _T, c_int]),
    "ggml_rms_norm": (_T, [c_void_p, _T, c_float]),
    "ggml_norm": (_T, [c_void_p, _T, c_float]),
    "ggml_scale": (_T, [c_void_p, _T, c_float]),
    "ggml_scale_bias": (_T, [c_void_p, _T, c_float, c_float]),
    "ggml_sqrt": (_T, [c_void_p, _T]),
    "ggml_swiglu_split": (_T, [c_void_p, _T, _T]),
    "ggml_geglu_split": (_T, [c_void_p, _T, _T]),
    "ggml_xielu": (_T, [c_void_p, _T, c_float, c_float, c_float, c_float]),
    "ggml_swiglu_oai": (_T, [c_void_p, _T, _T, c_float, c_float]),
    "ggml_ssm_conv": (_T, [c_void_p, _T, _T]),
    "ggml_ssm_scan": (_T, [c_void_p, _T, _T, _T, _T, _T, _T, _T, c_int64]),
    "ggml_gated_delta_net": (_T, [c_void_p, _T, _T, _T, _T, _T, _T, c_int64]),
    "ggml_set_rows": (_T, [c_void_p, _T, _T, _T]),
    "ggml_rope_ext": (
        _T,
        [c_void_p, _T, _T, _T, c_int, c_int, c_int, c_float, c_float, c_float, c_float, c_float, c_float],
    ),
    "ggml_flash_attn_ext": (_T, [c_void_p, _T, _T, _T, _T, c_float, c_float, c_float]),
    "ggml_flash_attn_ext_add_sinks": (None, [_T, _T]),
    "ggml_prec_set_acc": (c_bool, [_T, c_int]),
    "ggml_set_output": (None, [_T]),
    "ggml_new_graph_custom": (c_void_p, [c_void_p, c_size_t, c_bool]),
    "ggml_build_forward_expand": (None, [c_void_p, _T]),
    "ggml_graph_add_node": (None, [c_void_p, _T]),
    "ggml_graph_n_nodes": (c_int, [c_void_p]),
    "ggml_graph_node": (_T, [c_void_p, c_int]),
    "ggml_backend_cpu_buffer_type": (c_void_p, []),
    "ggml_gallocr_new": (c_void_p, [c_void_p]),
    "ggml_gallocr_free": (None, [c_void_p]),
    "ggml_gallocr_reserve": (c_bool, [c_void_p, c_void_p]),
    "ggml_gallocr_alloc_graph": (c_bool, [c_void_p, c_void_p]),
    "ggml_gallocr_get_buffer_size": (c_size_t, [c_void_p, c_int]),
    "ggml_get_type_traits": (ctypes.POINTER(TypeTraits), [c_int]),
    "ggml_threadpool_params_init": (None, [ctypes.POINTER(ThreadpoolParams), c_int]),
}
_CPU = {
    "ggml_cpu_init": (None, []),
    "ggml_threadpool_new": (c_void_p, [ctypes.POINTER(ThreadpoolParams)]),
    "ggml_threadpool_free": (None, [c_void_p]),
    "ggml_graph_plan": (ComputePlan, [c_void_p, c_int, c_void_p]),
    "ggml_graph_compute": (c_int, [c_void_p, ctypes.POINTER(ComputePlan)]),
    "ggml_get_type_traits_cpu": (ctypes.POINTER(CpuTypeTraits), [c_int]),
    "ggml_cpu_fp32_to_fp16": (None, [c_void_p, c_void_p, c_int64]),
    "ggml_cpu_fp16_to_fp32": (None, [c_void_p, c_void_p, c_int64]),
}


@dataclass(frozen=True)
class Ggml:
    """The two libraries with all used functions declared; the CPU kernels are initialised."""

    base: ctypes.CDLL
    cpu: ctypes.CDLL


@functools.cache
def ggml() -> Ggml:
    """Loads and declares once per process.

    Raises:
        KernelError: see ``native.libraries.load_ggml``.
    """
    libraries = load_ggml()
    for library, functions in ((libraries.base, _BASE), (libraries.cpu, _CPU)):
        for name, (restype, argtypes) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = restype, argtypes
    libraries.cpu.ggml_cpu_init()
    return Ggml(libraries.base, libraries.cpu)
