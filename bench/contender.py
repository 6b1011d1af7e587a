"""One side of a comparison on one device: this program or llama.cpp, in a process of its own. Run by ``bench.versus``.

    python -m bench.contender SETUP-AS-JSON

Prints ``{}`` when the model is loaded; then for every line with a task, one line with what it took. Both sides get the
same tokens, take the most probable token of every pass, and use the same number of threads.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tpi.observe import anonymous_bytes, peak_resident_bytes


class Setup(msgspec.Struct, frozen=True):
    """``kind`` is ``tpi``, ``llama`` (llama.cpp as it comes, with repacked weights) or ``llama-plain``.

    ``memory_bytes`` is for ``tpi`` only.
    """

    kind: str
    model: str
    n_threads: int
    n_cells: int
    cache: str
    memory_bytes: int | None = None
    n_sequences: int = 1
    """That are computed at once, with ``n_cells`` each."""


class Task(msgspec.Struct, frozen=True):
    """A prompt for every sequence that shares no beginning with an earlier one, and how many tokens to add to each."""

    prompts: list[list[int]]
    n_tokens: int


class Took(msgspec.Struct, frozen=True):
    """Times of a task; ``compute_s`` and ``streamed_bytes`` (read from disk) are of decoding, None if not known."""

    prefill_s: float
    decode_s: float
    compute_s: float | None
    streamed_bytes: int | None
    peak_rss_bytes: int
    anonymous_bytes: int
    """At the end; without the pages of files, which the system can drop."""


class _Counters(msgspec.Struct, frozen=True):
    """Seconds inside the kernels and bytes streamed since the start."""

    compute_s: float
    streamed_bytes: int


class _Side:
    """``read`` begins a sequence anew with a prompt; ``step`` appends a token to each, in one pass. Both return the
    most probable next ones."""

    def __init__(
        self,
        read: Callable[[int, list[int]], int],
        step: Callable[[list[int]], list[int]],
        count: Callable[[], _Counters | None],
    ) -> None:
        self.read, self.step, self.count = read, step, count


# Each side loads only what is its own, inside its function: memory is compared.


@contextmanager
def _open_tpi(setup: Setup) -> Iterator[_Side]:
    from tpi.cluster.master import Master  # noqa: PLC0415
    from tpi.config import Folders, MasterSettings, Resources  # noqa: PLC0415
    from tpi.engine.chunks import next_chunk  # noqa: PLC0415
    from tpi.engine.passes import Passes, Rows  # noqa: PLC0415
    from tpi.engine.sequences import Sequences  # noqa: PLC0415
    from tpi.runtime.embedding import EmbeddingTable  # noqa: PLC0415
    from tpi.runtime.logits import Wanted  # noqa: PLC0415

    beside = Path(setup.model).parent  # on the same disk, which may be slowed
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tpi-bench-", dir=beside)))
        settings = MasterSettings(
            model=Path(setup.model),
            folders=Folders(folder, folder, Path(setup.cache)),
            resources=Resources(setup.memory_bytes, None, setup.n_threads),
            context=setup.n_cells * setup.n_sequences,
            n_parallel=setup.n_sequences,
            bind="127.0.0.1",
            port=0,
        )
        master = stack.enter_context(Master(settings))
        cluster = stack.enter_context(master.form(lambda event: None))
        sequences = Sequences(cluster, keeps_ended=False)
        passes = Passes(cluster, sequences, stack.enter_context(EmbeddingTable(master.gguf, master.spec)))
        begun = [sequences.begin([0]) for _ in range(setup.n_sequences)]
        live = [sequence for sequence in begun if sequence is not None]

        def read(number: int, prompt: list[int]) -> int:
            sequence, token = live[number], 0
            sequences.cut_back(sequence, 0)
            while prompt:
                n = next_chunk(len(prompt), cluster.max_tokens)
                sequences.make_room(sequence, n)
                for row in passes.run([Rows(sequence, prompt[:n], Wanted(1) if n == len(prompt) else None)]):
                    token = row.best()
                prompt = prompt[n:]
            return token

        def step(tokens: list[int]) -> list[int]:
            for sequence in live:
                sequences.make_room(sequence, 1)
            batch = [Rows(sequence, [token], Wanted(1)) for sequence, token in zip(live, tokens, strict=True)]
            return [row.best() for row in passes.run(batch)]

        def count() -> _Counters:
            rank = cluster.status().ranks[0]
            return _Counters(rank.compute_s, rank.streamed_bytes)

        yield _Side(read, step, count)


@contextmanager
def _open_llama(setup: Setup) -> Iterator[_Side]:
    import llama_cpp as lib  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    of_model, of_context = lib.llama_model_default_params(), lib.llama_context_default_params()
    of_model.use_extra_bufts = setup.kind == "llama"
    of_context.n_ctx = setup.n_cells * setup.n_sequences
    of_context.n_batch = of_context.n_ubatch = 512
    of_context.n_seq_max = setup.n_sequences
    of_context.n_threads = of_context.n_threads_batch = setup.n_threads
    of_context.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(setup.model.encode(), of_model)
    context = lib.llama_init_from_model(model, of_context)
    n_vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    batch = lib.llama_batch_init(512, 0, 1)
    n_tokens = [0] * setup.n_sequences

    def run(rows: list[tuple[int, int]]) -> None:
        """Appends a token to a sequence with every row; the last row of each gives logits."""
        last = {number: row for row, (number, _) in enumerate(rows)}
        batch.n_tokens = len(rows)
        for row, (number, token) in enumerate(rows):
            batch.token[row], batch.pos[row] = token, n_tokens[number]
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, number
            batch.logits[row] = last[number] == row
            n_tokens[number] += 1
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama.cpp cannot decode")

    def best(row: int) -> int:
        logits = lib.llama_get_logits_ith(context, row)
        return int(np.ctypeslib.as_array(logits, (n_vocab,)).argmax())

    def read(number: int, prompt: list[int]) -> int:
        lib.llama_memory_seq_rm(lib.llama_get_memory(context), number, -1, -1)
        n_tokens[number] = 0
        for start in range(0, len(prompt), 512):
            run([(number, token) for token in prompt[start : start + 512]])
        return best(-1)

    def step(tokens: list[int]) -> list[int]:
        run(list(enumerate(tokens)))
        return [best(row) for row in range(len(tokens))]

    try:
        yield _Side(read, step, lambda: None)
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        lib.llama_model_free(model)


def _perform(side: _Side, task: Task) -> Took:
    started = time.perf_counter()
    tokens = [side.read(number, prompt) for number, prompt in enumerate(task.prompts)]
    prefilled, before = time.perf_counter(), side.count()
    for _ in range(task.n_tokens):
        tokens = side.step(tokens)
    ended, after = time.perf_counter(), side.count()
    took = Took(prefilled - started, ended - prefilled, None, None, peak_resident_bytes(), anonymous_bytes())
    if before is None or after is None:
        return took
    compute_s, streamed = after.compute_s - before.compute_s, after.streamed_bytes - before.streamed_bytes
    return msgspec.structs.replace(took, compute_s=compute_s, streamed_bytes=streamed)


def main(setup: Setup) -> None:
    """Serves tasks from standard input until it ends."""
    with (_open_tpi if setup.kind == "tpi" else _open_llama)(setup) as side:
        print("{}", flush=True)
        for line in sys.stdin:
            print(msgspec.json.encode(_perform(side, msgspec.json.decode(line, type=Task))).decode(), flush=True)


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=Setup))
