"""What ranks keep of a text, written to files and read by others: the same bits go on. And what is not taken for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from tests.parity.runner import LocalRunner
from tests.unit.engine.test_slots import AtOnce
from tests.variants.all import VARIANTS
from tests.variants.made import write_made
from tests.variants.phi3 import phi3
from tpi.cli.models import find_model
from tpi.cluster.control.messages import Plan, PrefixDone
from tpi.cluster.prefixes.keeping import MAX_PARTS, follow
from tpi.cluster.prefixes.orders import Action, PrefixOrder
from tpi.engine.generation import Answer, Request, TokenLogprob
from tpi.engine.language import Language
from tpi.engine.scheduler import Scheduler
from tpi.engine.settings import GenerationSettings, SamplingSettings
from tpi.engine.slots import Slots
from tpi.errors import DiskSpaceError, UsageError
from tpi.gguf.types import F16, TYPES_BY_NAME, TensorType
from tpi.runtime.passes import Copies
from tpi.runtime.prefix import find_slots, views
from tpi.runtime.rankmodel import RankSettings
from tpi.runtime.workspace import Workspace

TRAINED = Path(__file__).parents[1] / "trained"
TEXT = "Once upon a time there was a fox who had a lantern, and the fox went into the wood. " * 2
N_TOKENS = 8
Q8_0 = TYPES_BY_NAME["Q8_0"]


class Host:
    """As ``RankHost``, whose window lends no memory."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def between_passes(self, copies: Copies, n_cells: int) -> Workspace:
        self._workspace.ledger.settle()
        self._workspace.copy(copies)
        self._workspace.ledger.copied()
        return self._workspace


class Session:
    """Ranks of this process, each with a folder of its own below ``parts``, or below ``folder``, the master's."""

    def __init__(self, runner: LocalRunner, path: Path, folder: Path, parts: Path | None = None) -> None:
        self.runner, self._folder = runner, parts or folder
        self.language = Language(path)
        self.scheduler = Scheduler(runner, runner.table, self.language.vocabulary, keeps_ended=True)
        at_once = cast(Scheduler, AtOnce(self.scheduler))
        self.slots = Slots(at_once, self, folder, runner.spec.digest, runner.n_sequences)

    def keep(self, order: PrefixOrder) -> tuple[PrefixDone, ...]:
        runner, settings = self.runner, self.runner.settings
        return tuple(
            follow(
                order,
                Plan(
                    epoch=1,
                    rank=rank,
                    spec=runner.spec,
                    partition=runner.model.partition,
                    n_cells=settings.n_cells,
                    max_tokens=settings.max_tokens,
                    max_sampled=settings.n_sampled,
                    payload="f32",
                    kv_type=settings.kv_type.name,
                    n_kept_states=settings.n_kept_states,
                    is_reproducible=settings.is_reproducible,
                ),
                Host(workspace),
                self._folder / str(rank),
            )
            for rank, workspace in enumerate(runner.workspaces)
        )

    def ask(self, text: str) -> tuple[Answer, list[TokenLogprob]]:
        tokens = self.language.vocabulary.tokenize(text, add_special=True, parse_special=False)
        settings = GenerationSettings(N_TOKENS, raw=True, n_logprobs=2)
        generation = self.scheduler.submit(Request(tuple(tokens), SamplingSettings(temperature=0), settings))
        while not self.scheduler.is_idle:
            self.scheduler.step()
        return generation.answer, [entry for delta in generation.take() for entry in delta.logprobs]


def runner_of(
    path: Path,
    kind: TensorType = F16,
    shares: tuple[int, ...] = (2, 1),
    *,
    n_cells: int = 512,
    repack: bool = False,
    **more: Any,
) -> LocalRunner:
    settings = RankSettings(64, n_cells, 1, kind, n_sequences=2, n_kept_states=2, **more)
    return LocalRunner(path, settings, shares=shares, repack=repack)


@pytest.mark.parametrize(
    ("model", "kind"),
    [("demo", F16), ("demo", Q8_0), ("deltas", F16), ("windowed", F16), ("falcon-h1 normed", F16), ("lfm2 1.2B", F16)],
)
def test_others_go_on_with_the_same_bits(tmp_path: Path, model: str, kind: TensorType) -> None:
    path = find_model("demo") if model == "demo" else TRAINED / f"{model}.gguf"
    if model in VARIANTS:
        path = write_made(tmp_path / "model.gguf", VARIANTS[model](), "F16")
    with runner_of(path, kind) as runner:
        session = Session(runner, path, tmp_path)
        first, _ = session.ask(TEXT)
        saved = session.slots.save(first.slot, "fox")
        going_on = f"{TEXT}{first.text} And then"
        expected = session.ask(going_on)
    with runner_of(path, kind) as runner:
        session = Session(runner, path, tmp_path)
        restored = session.slots.restore(0, "fox")
        assert (restored.n_tokens, restored.n_bytes) == (saved.n_tokens, saved.n_bytes)
        answer, logprobs = session.ask(going_on)
        assert answer.n_cached_tokens == expected[0].n_cached_tokens >= first.n_prompt_tokens - 1
        assert (answer.text, logprobs) == (expected[0].text, expected[1])


def _swap(folder: Path) -> None:
    [first], [second] = (list((folder / rank).iterdir()) for rank in "01")
    second.write_bytes(first.read_bytes())


def _cut(folder: Path) -> None:
    [part] = (folder / "1").iterdir()
    part.write_bytes(part.read_bytes()[:-100])


def _keep(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("shares", "kind", "spoil", "said"),
    [
        ((2, 1), Q8_0, _keep, "rank 0: the prefix fox was saved with a KV cache of another type: F16; save it again"),
        ((1, 2), F16, _keep, "rank 0: the prefix fox was saved with other shares of the devices; save it again"),
        ((2, 1), F16, _swap, "rank 1: the prefix fox was saved with another rank: 0; save it again"),
        ((2, 1), F16, _cut, "rank 1: .* is damaged: it has .* bytes, not"),
    ],
)
def test_what_is_of_something_else_is_refused(
    tmp_path: Path, shares: tuple[int, ...], kind: TensorType, spoil: Callable[[Path], None], said: str
) -> None:
    """Nothing has changed by that: answers are as cached as they were."""
    path = find_model("demo")
    with runner_of(path) as runner:
        session = Session(runner, path, tmp_path)
        first, _ = session.ask(TEXT)
        session.slots.save(first.slot, "fox")
        session.slots.save(first.slot, "fox")
    spoil(tmp_path)
    with runner_of(path, kind, shares) as runner:
        session = Session(runner, path, tmp_path)
        other = session.ask("The crow sat in a tree.")
        with pytest.raises(UsageError, match=said):
            session.slots.restore(other[0].slot, "fox")
        again = session.ask("The crow sat in a tree.")
        assert again[0].n_cached_tokens == again[0].n_prompt_tokens - 1 and again[0].text == other[0].text


def test_what_was_computed_otherwise_is_refused_where_bits_count(tmp_path: Path) -> None:
    path = find_model("demo")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, ""),
        ({"is_reproducible": True}, "rank 0: the prefix fox was saved with other arithmetic: fast; save it again"),
        ({"is_reproducible": True}, ""),
        ({"is_reproducible": True, "repack": True}, "saved with other arithmetic: reproducible, f32; save it again"),
        ({}, "saved with other arithmetic: reproducible, f32; save it again"),
    )
    for more, said in cases:
        with runner_of(path, **more) as runner:
            session = Session(runner, path, tmp_path)
            if said:
                with pytest.raises(UsageError, match=said):
                    session.slots.restore(0, "fox")
            else:
                session.slots.save(session.ask(TEXT)[0].slot, "fox")
                session.slots.restore(0, "fox")


def test_heads_that_were_turned_for_a_longer_context_are_refused(tmp_path: Path) -> None:
    path = write_made(tmp_path / "model.gguf", phi3(2, 4, 2, n_short=256))
    for n_cells, said in (
        (320, ""),
        (512, ""),
        (256, "saved with heads turned for long contexts: True; save it again"),
    ):
        with runner_of(path, n_cells=n_cells) as runner:
            session = Session(runner, path, tmp_path / "saved")
            if n_cells == 320:
                session.slots.save(session.ask(TEXT)[0].slot, "fox")
            if not said:
                session.slots.restore(0, "fox")
                continue
            with pytest.raises(UsageError, match=said):
                session.slots.restore(0, "fox")


def test_two_masters_save_by_one_name_with_the_same_workers(tmp_path: Path) -> None:
    path = find_model("demo")
    with runner_of(path) as runner:
        some, others = (Session(runner, path, tmp_path / name, tmp_path / "parts") for name in "ab")
        slot = some.ask(TEXT)[0].slot
        others.ask("The crow sat in a tree.")
        some.slots.save(slot, "fox")
        for _ in range(2):
            others.slots.save(slot, "fox")
        assert some.slots.restore(slot, "fox").n_tokens > others.slots.restore(slot, "fox").n_tokens


def test_what_failed_leaves_nothing(tmp_path: Path) -> None:
    """A rank has no room; a process was killed while it wrote; nobody knows any more what was saved."""
    path = find_model("demo")
    (tmp_path / "1").write_text("no folder")
    with runner_of(path) as runner:
        session = Session(runner, path, tmp_path)
        slot = session.ask(TEXT)[0].slot
        with pytest.raises(DiskSpaceError, match=r"^rank 1: cannot write fox\.part-\w+: File exists; look after"):
            session.slots.save(slot, "fox")
        assert list((tmp_path / "0").iterdir()) == [] and not (tmp_path / "fox").exists()
        (tmp_path / "1").unlink()
        (tmp_path / "fox").mkdir()
        with pytest.raises(UsageError, match="fox is there, and is no saved text"):
            session.slots.save(slot, "fox")
        for number in range(MAX_PARTS):
            (tmp_path / "0" / f"crow.part-{number:032x}").touch()
        os.utime(tmp_path / "0" / f"crow.part-{7:032x}", (1, 1))
        session.slots.save(slot, "hen")
        assert len(list((tmp_path / "0").iterdir())) == MAX_PARTS and (tmp_path / "0" / f"crow.part-{6:032x}").exists()
        assert not (tmp_path / "0" / f"crow.part-{7:032x}").exists(), "which was used longest ago"


@pytest.mark.parametrize("model", ["demo", "deltas", "windowed"])
def test_a_disk_that_fails_in_the_middle_of_a_restore(tmp_path: Path, model: str) -> None:
    """The file was good when it was checked; then its values are none, on one rank of two."""
    path = find_model("demo") if model == "demo" else TRAINED / f"{model}.gguf"
    crow = "The crow sat in a tree."
    with runner_of(path) as runner:
        session = Session(runner, path, tmp_path)
        first, _ = session.ask(TEXT)
        session.slots.save(first.slot, "fox")
        going_on = f"{TEXT}{first.text} And then"
        expected = [session.ask(text)[0].text for text in (going_on, crow)]
    with runner_of(path) as runner:
        session = Session(runner, path, tmp_path)
        session.ask(crow)
        [part] = (tmp_path / "1").iterdir()
        good, keep, restores = part.read_bytes(), session.keep, list[PrefixOrder]()

        def spoil(order: PrefixOrder) -> tuple[PrefixDone, ...]:
            if order.action is Action.RESTORE:
                restores.append(order)
                part.write_bytes(good[:-10000] + b"\xff" * 10000)
            done = keep(order)
            part.write_bytes(good)
            return done

        session.keep = spoil  # type: ignore[method-assign]
        for slot in (1, 0, 1):
            with pytest.raises(UsageError, match=r"rank 1: .* is damaged: its bytes differ"):
                session.slots.restore(slot, "fox")
            order, workspace = restores[-1], runner.workspaces[1]
            kept = views(workspace, order.prefix, find_slots(workspace, order.prefix), order.n_present)
            assert not any(bytes(view).strip(b"\0") for view in kept), "what is no number would be everybody's"
            assert session.ask(crow)[0].text == expected[1]
        session.keep = keep  # type: ignore[method-assign]
        restored = session.slots.restore(1, "fox")
        answer, _ = session.ask(going_on)
        assert answer.n_cached_tokens == restored.n_tokens and answer.text == expected[0]
