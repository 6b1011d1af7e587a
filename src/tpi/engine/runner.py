"""What the engine needs of whoever runs passes: a cluster of any size, or one rank."""

from typing import Protocol

from tpi.model.spec import ModelSpec
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.retention import Retention


class PassRunner(Protocol):
    """Runs passes. What it is said to be can change with the epoch."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def n_cells(self) -> int:
        """Of all sequences together: whole blocks."""

    @property
    def n_context(self) -> int:
        """Tokens that a sequence can have."""

    @property
    def max_tokens(self) -> int: ...

    @property
    def max_sampled(self) -> int: ...

    @property
    def n_sequences(self) -> int:
        """How many can be under way at once."""

    @property
    def is_staged(self) -> bool:
        """Passes of a prompt should be many: ranks work one after the other."""

    @property
    def is_reproducible(self) -> bool:
        """See ``RankSettings``."""

    @property
    def n_forgotten(self) -> int:
        """How often ranks have forgotten everything that they kept."""

    @property
    def retention(self) -> Retention:
        """A new one, of sequences of which nothing is kept yet."""

    def check_alive(self) -> None:
        """See ``cluster.cluster.Cluster.check_alive``."""

    def prepare(self) -> None:
        """Sees to it that passes can run again after one that was stopped: that one has left no trace, but for what
        ``Retention.begin`` says. Or everything is forgotten.

        Raises:
            TpiError: see ``cluster.master.Master.form``.
        """

    def run(self, work: Pass) -> tuple[Row, ...]:
        """See ``cluster.cluster.Cluster.run``."""

    def cancel(self, pass_id: int) -> None:
        """See ``cluster.cluster.Cluster.cancel``."""

    def rest(self) -> tuple[Row, ...]:
        """See ``cluster.cluster.Cluster.rest``."""
