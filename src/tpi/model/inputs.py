"""What enters a model for every token, and for every position: data that an architecture gives beside its blocks."""

from dataclasses import dataclass

from tpi.model.blocks import Block
from tpi.model.spec import TensorSpec
from tpi.model.steps import Temperature


@dataclass(frozen=True)
class ModelInputs:
    """The residual stream begins with a token's row of the embedding table, times ``embedding_scale``. ``looked_up``: a
    second table, whose row, times ``looked_up_scale``, every rank gets beside it. ``temperatures``: factors by
    position that blocks ask for."""

    embedding_scale: float = 1.0
    looked_up: TensorSpec | None = None
    looked_up_scale: float = 1.0
    temperatures: tuple[Temperature, ...] = ()
    short_context: int = 0
    """Where sequences can have more tokens than so many, heads are turned by other factors; 0: by the same."""

    @property
    def n_looked_up(self) -> int:
        """Values of a row of the second table."""
        return 0 if self.looked_up is None else self.looked_up.n_columns


PLAIN = ModelInputs()


@dataclass(frozen=True)
class Model:
    """All of a model: its blocks in execution order, the head last."""

    blocks: tuple[Block, ...]
    inputs: ModelInputs = PLAIN
    remarks: tuple[str, ...] = ()
    """What of the file is left out, in words."""
