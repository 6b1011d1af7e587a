"""Conversion to float32: every type of the table, against the ``gguf`` package."""

import gguf
import numpy as np
import pytest

from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.dequantize import to_float


@pytest.mark.parametrize("name", TYPES_BY_NAME)
def test_every_type(name: str) -> None:
    """Random bytes are values in every type, some of them not finite."""
    kind, n_columns = TYPES_BY_NAME[name], 4096
    data = np.random.default_rng(2).integers(0, 256, kind.row_bytes(n_columns), dtype=np.uint8)
    out = np.zeros(n_columns, np.float32)
    to_float(kind.id, data.tobytes(), out)
    with np.errstate(all="ignore"):
        wanted = gguf.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType[name]).reshape(-1)
        assert np.count_nonzero(np.isfinite(out)) > n_columns // 2
        assert np.allclose(out, wanted, rtol=1e-5, atol=0, equal_nan=True)
