"""Conversion to float32: every type of the table, against the ``gguf`` package, or what is said of it here."""

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.dequantize import to_float


def _by_package(data: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
    values: npt.NDArray[np.float32] = gguf.dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType[name])
    return values.reshape(-1)


def _scaled_integers(data: npt.NDArray[np.uint8], n_bits: int) -> npt.NDArray[np.float32]:
    """Blocks of 18 bytes: a scale in 16 bits, then integers, the first in the lowest bits; of one bit -1 and 1, of two
    -1, 0, 1 and 2."""
    blocks = data.reshape(-1, 18)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    numbers = blocks[:, 2:, None] >> np.arange(0, 8, n_bits) & (1 << n_bits) - 1
    integers = 2 * numbers.astype(np.float32) - 1 if n_bits == 1 else numbers.astype(np.float32) - 1
    return np.asarray(scales * integers.reshape(len(blocks), -1)).reshape(-1)


@pytest.mark.parametrize("name", TYPES_BY_NAME)
def test_every_type(name: str) -> None:
    """Random bytes are values in every type, some of them not finite."""
    kind, n_columns = TYPES_BY_NAME[name], 4096
    data = np.random.default_rng(2).integers(0, 256, kind.row_bytes(n_columns), dtype=np.uint8)
    out = np.zeros(n_columns, np.float32)
    to_float(kind.id, data.tobytes(), out)
    with np.errstate(all="ignore"):
        wanted = _scaled_integers(data, int(name[1])) if name in ("Q1_0", "Q2_0") else _by_package(data, name)
        assert np.count_nonzero(np.isfinite(out)) > n_columns // 2
        assert np.allclose(out, wanted, rtol=1e-5, atol=0, equal_nan=True)
