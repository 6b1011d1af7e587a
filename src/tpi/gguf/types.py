"""The tensor data types of GGUF files: sizes of their quantisation blocks.

Only types that ggml's CPU kernels multiply are listed. A test compares the table with the loaded ggml.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorType:
    """A data type: ``block_elements`` values are stored in ``block_bytes`` bytes."""

    id: int
    name: str
    block_elements: int
    block_bytes: int

    def row_bytes(self, n_columns: int) -> int:
        """Bytes of ``n_columns`` values, which must be whole quantisation blocks.

        Raises:
            ValueError: ``n_columns`` is not a multiple of the block.
        """
        blocks, rest = divmod(n_columns, self.block_elements)
        if rest:
            raise ValueError(f"{n_columns} columns are not whole {self.name} blocks of {self.block_elements}")
        return blocks * self.block_bytes


_TABLE = (
    TensorType(0, "F32", 1, 4),
    TensorType(1, "F16", 1, 2),
    TensorType(2, "Q4_0", 32, 18),
    TensorType(3, "Q4_1", 32, 20),
    TensorType(6, "Q5_0", 32, 22),
    TensorType(7, "Q5_1", 32, 24),
    TensorType(8, "Q8_0", 32, 34),
    TensorType(10, "Q2_K", 256, 84),
    TensorType(11, "Q3_K", 256, 110),
    TensorType(12, "Q4_K", 256, 144),
    TensorType(13, "Q5_K", 256, 176),
    TensorType(14, "Q6_K", 256, 210),
    TensorType(16, "IQ2_XXS", 256, 66),
    TensorType(17, "IQ2_XS", 256, 74),
    TensorType(18, "IQ3_XXS", 256, 98),
    TensorType(19, "IQ1_S", 256, 50),
    TensorType(20, "IQ4_NL", 32, 18),
    TensorType(21, "IQ3_S", 256, 110),
    TensorType(22, "IQ2_S", 256, 82),
    TensorType(23, "IQ4_XS", 256, 136),
    TensorType(29, "IQ1_M", 256, 56),
    TensorType(30, "BF16", 1, 2),
    TensorType(34, "TQ1_0", 256, 54),
    TensorType(35, "TQ2_0", 256, 66),
    TensorType(39, "MXFP4", 32, 17),
    TensorType(40, "NVFP4", 64, 36),
    TensorType(41, "Q1_0", 128, 18),
    TensorType(42, "Q2_0", 64, 18),
)

TYPES_BY_ID = {entry.id: entry for entry in _TABLE}
TYPES_BY_NAME = {entry.name: entry for entry in _TABLE}
F32 = TYPES_BY_NAME["F32"]
F16 = TYPES_BY_NAME["F16"]
