"""Passes get longer where a rank's disk is said to be slow, if that costs little memory; and answer the same."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.ranks import CONTEXT, DEMO
from tests.models import write_random_model
from tests.parity.rig import range_difference
from tests.sequences import TokenSequence
from tpi.cluster.cluster import Cluster
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import Failed, Offer, Plan
from tpi.cluster.master import Master
from tpi.cluster.pairing.connect import find_or_join, open_control
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.config import Folders, MasterSettings, Resources
from tpi.errors import LinkError
from tpi.gguf.reader import read_gguf
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.protocols import Float32Array

WAIT_S = 20.0
SLOW, FAST = 1e6, 1e15
SOME_WINDOW, ALL_WINDOW = 1 << 20, 1 << 30
N_PROMPT = 389
LIMIT_BYTES = 150_000_000


@contextmanager
def one_device(
    folder: Path, cache: Path, disk_bytes_per_s: float, window_bytes: int, chunk_tokens: int | None
) -> Iterator[Cluster]:
    """The demo model on a device whose disk was noted to read so fast."""
    folders = Folders(folder / "state", folder / "shards", cache)
    note = folder / "shards" / "master" / "earlier.disk"
    note.parent.mkdir(parents=True)
    way = {"chunk_bytes": 1 << 20, "n_readers": 1, "bytes_per_s": disk_bytes_per_s}
    note.write_text(json.dumps({"files": [[0, 0, 0]], "way": way}))
    settings = MasterSettings(
        DEMO,
        folders,
        Resources(1 << 30, window_bytes),
        context=CONTEXT,
        chunk_tokens=chunk_tokens,
        bind="127.0.0.1",
        port=0,
    )
    with Master(settings) as master, master.form(lambda event: None) as cluster:
        yield cluster


def prefill(cluster: Cluster, tokens: Sequence[int]) -> list[Float32Array | None]:
    """What each pass gives; the last the logits f32 [n_vocab] of the last token."""
    with EmbeddingTable(read_gguf(DEMO), cluster.spec) as table:
        rows = TokenSequence(cluster, table).prefill(tokens)
        return [None if row is None else row.values for row in rows]


@pytest.mark.parametrize(
    ("disk_bytes_per_s", "window_bytes", "wish", "expected"),
    [
        (SLOW, SOME_WINDOW, None, CONTEXT),
        (FAST, SOME_WINDOW, None, 128),
        (SLOW, ALL_WINDOW, None, 128),
        (SLOW, SOME_WINDOW, 100, 100),
    ],
    ids=["slow", "fast", "resident", "as wished"],
)
def test_what_one_device_chooses(
    tmp_path: Path, cache: Path, disk_bytes_per_s: float, window_bytes: int, wish: int | None, expected: int
) -> None:
    with one_device(tmp_path, cache, disk_bytes_per_s, window_bytes, wish) as cluster:
        assert cluster.max_tokens == expected


def test_longer_passes_answer_the_same(tmp_path: Path, cache: Path) -> None:
    tokens = [1 + number * 7 % 500 for number in range(N_PROMPT)]
    found = []
    for wish in (None, 128):
        with one_device(tmp_path / str(wish), cache, SLOW, SOME_WINDOW, wish) as cluster:
            found.append(prefill(cluster, tokens))
    assert [len(passes) for passes in found] == [1, 4]
    (*_, longer), (*_, usual) = found
    assert longer is not None and usual is not None
    assert range_difference(longer, usual) == 0, "all passes have 64 tokens or more, whose kernels sum alike"


@pytest.fixture(scope="module")
def many_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """85 MB of weights, and little memory for passes."""
    path = tmp_path_factory.mktemp("many") / "many.gguf"
    return write_random_model(path, n_layers=72, context=CONTEXT)


@pytest.mark.parametrize(
    ("offer", "wish", "expected"),
    [
        (Offer(LIMIT_BYTES, [], flop_per_s=1e11, disk_bytes_per_s=SLOW), None, 256),
        (Offer(LIMIT_BYTES, [], flop_per_s=1e11, disk_bytes_per_s=FAST), None, 128),
        (Offer(LIMIT_BYTES, [], flop_per_s=0.0, disk_bytes_per_s=SLOW), None, 128),
        (Offer(LIMIT_BYTES, [], flop_per_s=1e11, disk_bytes_per_s=SLOW), 128, 128),
        (Offer(1 << 30, [], flop_per_s=1e11, disk_bytes_per_s=SLOW), None, 128),
        (Offer(1 << 30, [], window_bytes=10_000_000, flop_per_s=1e11, disk_bytes_per_s=SLOW), None, CONTEXT),
    ],
    ids=["slow", "fast", "unknown", "as wished", "resident", "small window"],
)
def test_what_a_worker_says_of_its_disk(
    tmp_path: Path, cache: Path, many_layers: Path, offer: Offer, wish: int | None, expected: int
) -> None:
    """It holds all layers, and has memory for most of them; passes of 512 tokens would take too much of that."""
    folders = Folders(tmp_path / "state", tmp_path / "shards", cache)
    settings = MasterSettings(
        many_layers,
        folders,
        n_workers=1,
        wait_s=WAIT_S,
        shares=(0, 1),
        chunk_tokens=wish,
        bind="127.0.0.1",
        port=0,
    )
    errors: list[LinkError] = []

    def form(master: Master) -> None:
        try:
            master.form(lambda event: None)
        except LinkError as error:
            errors.append(error)

    with Master(settings) as master:
        thread = threading.Thread(target=form, args=(master,))
        thread.start()
        key = JoinKey.decode(master.join_key)
        identity = find_or_join(key, "worker", IdentityStore(tmp_path / "worker"))
        with ControlLink(open_control(key.addresses, identity).socket, "the master") as link:
            link.send(offer)
            plan = link.receive(WAIT_S)
            link.send(Failed("enough"))
            thread.join(WAIT_S)
    assert isinstance(plan, Plan) and plan.max_tokens == expected
    assert "enough" in str(errors)
