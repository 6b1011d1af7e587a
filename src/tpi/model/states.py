"""What a block keeps of a sequence for the tokens to come, as data: keys and values by cell, or a recurrent state.

The memory is ``runtime``'s. What is kept follows from a rank's share, as its weights do.
"""

from dataclasses import dataclass

from tpi.model.spans import Share, Span, grouped

FULL = 0
"""The window of attention that sees all cells before."""


@dataclass(frozen=True)
class KvState:
    """Keys and values of a block, by cell: a KV head for every ``group`` of what the block's first measure counts, of
    ``head_dim`` values in a key and ``value_dim`` in a value."""

    head_dim: int
    group: int
    value_dim: int
    window: int = FULL
    """A token sees so many positions, its own included."""
    is_latent: bool = False
    """Values are the first of the key's, and not kept again."""
    has_sinks: bool = False
    """Each query head has a score that takes its part of the attention."""

    @property
    def dims(self) -> tuple[int, int]:
        """Values of a head, in keys and in values."""
        return self.head_dim, self.value_dim

    def widths(self, share: Share) -> tuple[int, int]:
        """Values of a cell, of keys and of values."""
        n_heads = self.heads(share).size
        return n_heads * self.head_dim, 0 if self.is_latent else n_heads * self.value_dim

    def heads(self, share: Share) -> Span:
        """The KV heads that a rank keeps."""
        return grouped(share.first, 1, self.group) if share.first.size else Span(0, 0)

    def runs(self, share: Share) -> list[tuple[Span, Span]]:
        """The rank's query heads in runs with the KV heads that they look at, of which all in a run have equally many;
        counted from the rank's first."""
        heads, runs = share.first, list[tuple[Span, Span]]()
        first_kv = heads.start // self.group
        for kv in range(first_kv, -(-heads.stop // self.group)):
            stop = min(heads.stop, (kv + 1) * self.group) - heads.start
            start = max(heads.start, kv * self.group) - heads.start
            at = kv - first_kv
            if runs and runs[-1][0].size == (stop - start) * runs[-1][1].size:
                runs[-1] = Span(runs[-1][0].start, stop), Span(runs[-1][1].start, at + 1)
            else:
                runs.append((Span(start, stop), Span(at, at + 1)))
        return runs


@dataclass(frozen=True)
class RecurrentState:
    """What a recurrence carries from token to token, f32, in parts: of each so many values for everything that the
    block's first measure counts, and so many for every ``group`` of it."""

    parts: tuple[int, ...]
    of_groups: tuple[int, ...]
    group: int

    def sizes(self, share: Share) -> tuple[int, ...]:
        """Values of each part that a rank keeps."""
        n_groups = grouped(share.first, 1, self.group).size if share.first.size else 0
        pairs = zip(self.parts, self.of_groups, strict=True)
        return tuple(size * share.first.size + of_group * n_groups for size, of_group in pairs)


State = KvState | RecurrentState
