"""Fixtures of the tests that compare answers: the demo model, cut in many ways, and a story that it tells."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cluster.ranks import DEMO, Cut, Outcome, Story, compare, cut, everything, tell_story, thread_run, top_gap
from tests.cluster.unrounded import write_unrounded
from tpi.cluster.allreduce.payload import PayloadFormat

N_TOKENS = 128

CutFor = Callable[[Path, Sequence[float]], Cut]
OneDevice = Callable[[Path], Outcome]


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """What one device tells."""
    return tell_story(DEMO, tmp_path_factory.mktemp("story"), N_TOKENS)


@pytest.fixture(scope="session")
def unrounded_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's weights in F16."""
    return write_unrounded(DEMO, tmp_path_factory.mktemp("unrounded") / "demo-f16.gguf")


@pytest.fixture(scope="session")
def cut_for(tmp_path_factory: pytest.TempPathFactory) -> CutFor:
    """A model's shards for the given shares; each made once."""
    made: dict[tuple[Path, tuple[float, ...]], Cut] = {}

    def get(model: Path, shares: Sequence[float]) -> Cut:
        key = model, tuple(shares)
        if key not in made:
            made[key] = cut(model, shares, tmp_path_factory.mktemp("cut"))
        return made[key]

    return get


@pytest.fixture(scope="session")
def one_device(cut_for: CutFor, story: Story) -> OneDevice:
    """What one rank computes for the story with a model; computed once."""
    known: dict[Path, Outcome] = {}

    def get(model: Path) -> Outcome:
        if model not in known:
            known[model] = thread_run(cut_for(model, (1,)), story.chunks, PayloadFormat.F32, everything)
        return known[model]

    return get


@pytest.fixture(scope="session")
def check_tokens(one_device: OneDevice, story: Story, unrounded_demo: Path) -> Callable[[Sequence[int]], None]:
    """Checks that tokens after the story's prompt are the story's, up to a near tie at most.

    A near tie: with the demo model, a cluster's logits differ from one device's by less than what rounding activations
    changes (``test_same_answer`` shows that).
    """

    def check(tokens: Sequence[int]) -> None:
        pairs = zip(tokens, story.answer, strict=False)
        first = next((number for number, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        if first is not None:
            reference = one_device(DEMO).logits
            bound = compare(one_device(unrounded_demo).logits, reference).of_range
            gap = top_gap(reference[story.answering][first]) / float(reference.max() - reference.min())
            assert gap <= 2 * bound, f"token {first} differs, where one device is sure"

    return check
