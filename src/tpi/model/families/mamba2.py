"""The ``mamba2`` architecture: Mamba-2 and Codestral Mamba. Recurrences alone."""

from tpi.model.blocks import Block
from tpi.model.common import Head, output_head, read_norm
from tpi.model.inputs import Model
from tpi.model.mamba import mamba_blocks, read_mamba
from tpi.model.metadata import Metadata
from tpi.model.spec import Dimensions
from tpi.model.tensors import Tensors

NAMES = ("mamba2",)


def model(meta: Metadata, dimensions: Dimensions, tensors: Tensors) -> Model:
    """The recurrence of every layer, then the head.

    Raises:
        ModelFileError: an entry or a tensor is missing or impossible.
    """
    norm, mamba, found = read_norm(meta), read_mamba(meta), list[Block]()
    for layer in range(dimensions.n_layers):
        found += mamba_blocks(len(found), layer, dimensions.n_embd, mamba, tensors, norm)
    found.append(output_head(len(found), dimensions, tensors, Head(norm)))
    return Model(tuple(found))
