"""Fixtures of the tests that compare answers: the demo model, cut in many ways, and a story that it tells."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.cluster.ranks import DEMO, Cut, Outcome, Story, compare, cut, everything, forced, tell_story, thread_run
from tests.cluster.unrounded import write_unrounded
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.cluster import Cluster

N_TOKENS = 128

CutFor = Callable[[Path, Sequence[float] | str], Cut]
CheckAnswers = Callable[[Cluster], None]
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
    made: dict[tuple[Path, str], Cut] = {}

    def get(model: Path, shares: Sequence[float] | str) -> Cut:
        key = model, str(shares)
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
def check_answers(one_device: OneDevice, story: Story, unrounded_demo: Path) -> CheckAnswers:
    """Checks what a cluster says where the story's answer comes, the story's tokens fed to it: at every position its
    logits are those of one device, up to what rounding activations changes, and its token, up to a near tie."""

    def check(cluster: Cluster) -> None:
        reference = one_device(DEMO).logits
        bound = compare(one_device(unrounded_demo).logits, reference).of_range
        difference = compare(forced(cluster, DEMO, story), reference[story.answering])
        assert difference.of_range <= bound
        assert difference.gap_of_allowed <= 1, f"positions {difference.positions} differ, where one device is sure"

    return check
