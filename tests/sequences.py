"""One sequence of tokens on whoever runs passes, for tests that feed tokens and look at logits."""

from collections.abc import Iterator, Sequence

from tpi.engine.chunks import next_chunk
from tpi.engine.passes import Passes, Rows
from tpi.engine.runner import PassRunner
from tpi.engine.sequences import Sequence as Computed
from tpi.engine.sequences import Sequences
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import ALL, Row, Wanted


class TokenSequence:
    """Kept from prompt to prompt."""

    def __init__(self, runner: PassRunner, table: EmbeddingTable) -> None:
        self._runner = runner
        self._sequences = Sequences(runner, keeps_ended=False)
        self._passes = Passes(runner, self._sequences, table)
        self._sequence: Computed | None = None

    def keep_prefix(self, prompt: Sequence[int]) -> int:
        """Forgets all tokens but those that ``prompt`` begins with, its last one excluded, and of these what cannot be
        gone back to; returns how many are kept."""
        if self._sequence is not None:
            self._sequences.end(self._sequence)
        self._sequences.prepare()
        self._sequence = self._sequences.begin(prompt)
        assert self._sequence is not None, "it is alone"
        return len(self._sequence.tokens)

    def prefill(self, tokens: Sequence[int], wanted: Wanted = ALL) -> Iterator[Row | None]:
        """Appends ``tokens`` in as few passes as possible: None after each, and after the last what is wanted of the
        last token's logits."""
        sequence = self._begun()
        while tokens:
            n = min(len(tokens), sequence.n_to_mark or len(tokens))
            n = next_chunk(n, self._runner.max_tokens, is_staged=self._runner.is_staged)
            is_last = n == len(tokens)
            keep = is_last or len(sequence.tokens) + n in sequence.marks
            rows = self.run(tokens[:n], wanted if is_last else None, keep=keep)
            tokens = tokens[n:]
            yield rows[0] if is_last else None

    def run(self, tokens: Sequence[int], wanted: Wanted | None = ALL, *, keep: bool = False) -> tuple[Row, ...]:
        """Appends ``tokens`` in one pass; gives what is wanted of the logits of the last."""
        sequence = self._begun()
        assert self._sequences.make_room(sequence, len(tokens)) == len(tokens)
        return self._passes.run([Rows(sequence, tokens, wanted, keep)])

    def _begun(self) -> Computed:
        if self._sequence is None:
            self.keep_prefix([0])
        assert self._sequence is not None
        return self._sequence
