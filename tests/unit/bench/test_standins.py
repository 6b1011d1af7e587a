"""Devices that stand in for others: they take part in every sum, and no earlier than a real one would."""

import time
from pathlib import Path

import numpy as np
import pytest

from bench.computing import Computed, Recording, read_recording, write_recording
from bench.standins import StandIn
from tests.unit.runtime.rigs import Nobody, make_model, make_pass
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice
from tpi.config import Resources
from tpi.errors import Cancelled
from tpi.runtime.protocols import Float32Array, SumStep


class Noting(Nobody):
    """Notes when each sum began, and of how many rows."""

    def __init__(self) -> None:
        self.begun: list[tuple[float, int, int]] = []

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        assert partial is not None and not partial.any()
        self.begun.append((time.monotonic(), step.flow.block, len(partial)))
        super().start(step, partial, out)


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    entries = (
        Computed("attention", 8, 0.02),
        Computed("ffn", 8, 0.04),
        Computed("ffn", 1, 0.01),
    )
    return read_recording(write_recording(Recording(entries), tmp_path / "computing.json"))


def test_unknown_numbers_of_rows_are_between_those_that_are_known(recording: Recording) -> None:
    assert recording.seconds("attention", 16) == pytest.approx(0.04)
    assert recording.seconds("attention", 4) == pytest.approx(0.02), "one row reads as many weights as eight"
    assert recording.seconds("ffn", 1) == pytest.approx(0.01)
    assert recording.seconds("ffn", 2) == pytest.approx(0.01 + 0.03 / 7)
    assert recording.seconds("head", 8) == 0


def test_it_contributes_no_earlier_than_a_real_rank(tmp_path: Path, recording: Recording) -> None:
    _, model = make_model(tmp_path / "model.gguf", weights=(1, 1), rank=1)
    plan = Plan(1, 1, model.spec, model.partition, 64, 8, 8, "f32", "F16")
    sums = Noting()
    device = StandIn(plan, HostDevice("me", Resources(), 0), recording)
    device.connect(sums, lambda: (0, 0))
    started = time.monotonic()
    logits = device.run(make_pass(model, 0, 8, sampled=[7]))
    assert logits is not None and not logits.any() and logits.shape[0] == 1
    assert [(block, n_rows) for _, block, n_rows in sums.begun] == [(0, 8), (1, 8), (2, 8), (3, 1)]
    expected = np.cumsum([0.02, 0.04, 0.02, 0.01])
    assert all(at - started >= due for (at, _, _), due in zip(sums.begun, expected, strict=True))
    assert (device.status().name, device.status().n_passes) == ("me", 1)


def test_an_interrupted_pass_ends(tmp_path: Path, recording: Recording) -> None:
    _, model = make_model(tmp_path / "model.gguf", weights=(1, 1), rank=1)
    plan = Plan(1, 1, model.spec, model.partition, 64, 8, 8, "f32", "F16")
    device = StandIn(plan, HostDevice("me", Resources(), 0), recording)
    device.connect(Noting(), lambda: (0, 0))
    device.interrupt()
    with pytest.raises(Cancelled):
        device.run(make_pass(model, 0, 8))
