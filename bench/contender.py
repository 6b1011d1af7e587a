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


class Task(msgspec.Struct, frozen=True):
    """A prompt that shares no beginning with an earlier one, and how many tokens to add."""

    prompt: list[int]
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
    """``predict`` appends tokens and returns the most probable next one; ``forget`` begins anew."""

    def __init__(
        self, predict: Callable[[list[int]], int], forget: Callable[[], object], count: Callable[[], _Counters | None]
    ) -> None:
        self.predict, self.forget, self.count = predict, forget, count


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
            context=setup.n_cells,
            bind="127.0.0.1",
            port=0,
        )
        master = stack.enter_context(Master(settings))
        cluster = stack.enter_context(master.form(lambda event: None))
        sequences = Sequences(cluster, keeps_ended=False)
        passes = Passes(cluster, sequences, stack.enter_context(EmbeddingTable(master.gguf, master.spec)))
        begun = [sequences.begin([0])]

        def predict(tokens: list[int]) -> int:
            sequence, token = begun[0], 0
            assert sequence is not None
            while tokens:
                n = next_chunk(len(tokens), cluster.max_tokens)
                sequences.make_room(sequence, n)
                for row in passes.run([Rows(sequence, tokens[:n], Wanted(1) if n == len(tokens) else None)]):
                    token = row.best()
                tokens = tokens[n:]
            return token

        def forget() -> None:
            sequence = begun[0]
            assert sequence is not None
            sequences.cut_back(sequence, 0)

        def count() -> _Counters:
            rank = cluster.status().ranks[0]
            return _Counters(rank.compute_s, rank.streamed_bytes)

        yield _Side(predict, forget, count)


@contextmanager
def _open_llama(setup: Setup) -> Iterator[_Side]:
    import llama_cpp  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = setup.kind == "llama"
    llama_cpp.llama_cpp.llama_model_default_params = lambda: parameters
    model = llama_cpp.Llama(
        setup.model,
        n_ctx=setup.n_cells,
        n_batch=512,
        n_ubatch=512,
        n_threads=setup.n_threads,
        n_threads_batch=setup.n_threads,
        flash_attn=True,
        verbose=False,
    )

    def predict(tokens: list[int]) -> int:
        model.eval(tokens)
        logits = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())

    try:
        yield _Side(predict, model.reset, lambda: None)
    finally:
        model.close()


def _perform(side: _Side, task: Task) -> Took:
    side.forget()
    started = time.perf_counter()
    token = side.predict(task.prompt)
    prefilled, before = time.perf_counter(), side.count()
    for _ in range(task.n_tokens):
        token = side.predict([token])
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
