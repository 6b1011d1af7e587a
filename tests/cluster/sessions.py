"""A master in the process of the test, with workers that are processes of ``tpi join``. Called by tests only."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.cluster.commands import Home, Running
from tests.cluster.ranks import CONTEXT, DEMO
from tpi.cluster.cluster import Cluster
from tpi.cluster.master import Master
from tpi.config import Folders, MasterSettings, Resources

WAIT_S = 30.0
Started = Callable[[list[Running]], None]


@contextmanager
def session(
    folder: Path,
    homes: Sequence[Home],
    shares: tuple[float, ...] | None,
    options: Sequence[str] = (),
    started: Started = lambda workers: None,
    model: Path = DEMO,
    n_parallel: int = 1,
    program: str | None = None,
) -> Iterator[tuple[Cluster, list[Running]]]:
    """A cluster for ``model`` of a master, whose folders are in ``folder``, and a worker on each of ``homes``,
    named w1, w2 ... and started with ``options``; ``program`` is run there in place of ``tpi``.

    ``started`` is told of the workers before the cluster is formed.
    """
    folders = Folders(folder / "state", folder / "shards", folder / "cache")
    settings = MasterSettings(
        model,
        folders,
        Resources(window_bytes=1 << 20),
        n_workers=len(homes),
        wait_s=WAIT_S,
        shares=shares,
        context=CONTEXT,
        n_parallel=n_parallel,
        bind="127.0.0.1",
        port=0,
    )
    with ExitStack() as stack:
        master = stack.enter_context(Master(settings))
        workers = []
        for number, home in enumerate(homes, start=1):
            arguments = ["join", "-", "--name", f"w{number}", "--threads", "1", *options]
            worker = stack.enter_context(home.start(*arguments, program=program))
            worker.say(master.join_key)
            workers.append(worker)
        started(workers)
        with master.form(lambda event: None) as cluster:
            yield cluster, workers
        for worker in workers:
            assert worker.process.wait(WAIT_S) == 0, worker.err()
