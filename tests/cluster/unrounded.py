"""Copies of quantised models in F16: the same weights, but kernels do not round activations to 8 bits with them.

ggml multiplies Q8_0 weights with activations that it rounds to 8 bits. Where sums are taken in another order, a value
that lies near the middle between two steps is rounded the other way now and then, by nearly 1 % of its block's largest:
much more than the order of the sums itself ever makes. Called by tests and ``measure`` only.
"""

from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize


def write_unrounded(model: Path, path: Path) -> Path:
    """Writes ``model`` to ``path`` with all quantised matrices in F16; returns ``path``."""
    reader = gguf.GGUFReader(str(model))
    writer = gguf.GGUFWriter(str(path), reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.types[0] is gguf.GGUFValueType.ARRAY:
            writer.add_array(field.name, field.contents())
        else:
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        is_exact = tensor.tensor_type is gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, values.astype(np.float32 if is_exact else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
