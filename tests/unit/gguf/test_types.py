"""The table of data types is ggml's."""

import pytest

from tpi.gguf.types import TYPES_BY_ID, TYPES_BY_NAME
from tpi.runtime.ggml.binding import ggml


def test_the_table_equals_that_of_the_kernels() -> None:
    for kind in TYPES_BY_ID.values():
        traits = ggml().base.ggml_get_type_traits(kind.id).contents
        assert traits.type_name.decode().upper() == kind.name
        assert (traits.block_elements, traits.type_size) == (kind.block_elements, kind.block_bytes), kind


def test_names_and_ids_are_unique() -> None:
    assert len(TYPES_BY_NAME) == len(TYPES_BY_ID)


def test_row_bytes_of_whole_blocks_only() -> None:
    assert TYPES_BY_NAME["Q4_K"].row_bytes(512) == 288
    assert TYPES_BY_NAME["Q4_K"].row_bytes(0) == 0
    with pytest.raises(ValueError, match="300 columns are not whole Q4_K blocks of 256"):
        TYPES_BY_NAME["Q4_K"].row_bytes(300)
