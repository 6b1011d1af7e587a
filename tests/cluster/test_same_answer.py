"""A cluster answers like one device: logits of the demo model over a story of 128 tokens, real shards, real windows.

``python -m tests.cluster.measure`` prints what is measured here as a table.
"""

from pathlib import Path

import numpy as np
import pytest

from tests.cluster.ranks import (
    CONTEXT,
    DEMO,
    Budget,
    Story,
    compare,
    everything,
    half,
    smallest,
    thread_run,
)
from tests.cluster.stories import N_TOKENS, CutFor, OneDevice
from tests.parity.rig import LAYOUTS, range_difference, reference_logits
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import TlsPairs
from tpi.weights.stored import StoredWeights

Shares = tuple[float, ...]
SHARES: list[Shares] = [
    (1,),
    (1, 1),
    (5, 1),
    (0, 1),
    (1, 1, 1),
    (3, 2, 2, 1),
    (1, 0, 0, 1),
    (1,) * 5,
    (1,) * 8,
    (6, 1, 1, 1, 1, 1, 1, 0),
]
MANY = [shares for shares in SHARES if len(shares) > 1]
FURTHER = [layout for layout in LAYOUTS if layout not in SHARES]
BOUNDS = {PayloadFormat.F32: 1e-3, PayloadFormat.F16: 3e-3}
"""For int8 there is no bound but that of rounding activations to 8 bits, several times over; `measure` tells."""
MOST_OTHER_TOKENS = 4


def quarter(stored: StoredWeights) -> int:
    return smallest(stored) + (everything(stored) - smallest(stored)) // 4


def test_ranks_without_attention_are_among_them(cut_for: CutFor) -> None:
    """So that the other tests show what they claim to."""
    for shares, n_expected in (((1,) * 8, 2), ((0, 1), 1), ((3, 2, 2, 1), 0)):
        model = cut_for(DEMO, shares)
        attention = next(block for block in model.blocks if block.state is not None)
        assert model.n_ranks - len(model.partition.contributors(attention.index)) == n_expected


@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_the_window_changes_nothing(cut_for: CutFor, story: Story, shares: Shares) -> None:
    model = cut_for(DEMO, shares)
    pinned = thread_run(model, story.chunks, PayloadFormat.F16, everything)
    assert pinned.streamed_bytes == 0
    budgets: list[Budget] = [smallest, half] if len(shares) > 2 else [smallest, quarter, half]
    for budget in budgets:
        streamed = thread_run(model, story.chunks, PayloadFormat.F16, budget)
        assert streamed.streamed_bytes > len(story.chunks) * sum(map(everything, model.stored)) // 4
        assert np.array_equal(streamed.logits, pinned.logits)


@pytest.mark.parametrize(("shares", "payload"), [((5, 1), PayloadFormat.F32), ((3, 2, 2, 1), PayloadFormat.F16)])
def test_tls_links_change_nothing(
    cut_for: CutFor, story: Story, tmp_path: Path, shares: Shares, payload: PayloadFormat
) -> None:
    model = cut_for(DEMO, shares)
    expected = thread_run(model, story.chunks, payload, everything)
    over_tls = thread_run(model, story.chunks, payload, half, connect=TlsPairs(tmp_path).connect)
    assert np.array_equal(over_tls.logits, expected.logits)


@pytest.mark.parametrize("payload", list(BOUNDS))
@pytest.mark.parametrize("shares", MANY, ids=str)
def test_logits_are_those_of_one_device(
    cut_for: CutFor,
    one_device: OneDevice,
    story: Story,
    unrounded_demo: Path,
    shares: Shares,
    payload: PayloadFormat,
) -> None:
    """The trained weights without 8-bit activations: what the cluster itself changes."""
    outcome = thread_run(cut_for(unrounded_demo, shares), story.chunks, payload, everything)
    check(outcome.logits, one_device(unrounded_demo).logits, BOUNDS[payload], story)


@pytest.mark.parametrize("payload", list(BOUNDS))
@pytest.mark.parametrize("shares", MANY, ids=str)
def test_quantised_logits_differ_less_than_by_quantising_activations(
    cut_for: CutFor,
    one_device: OneDevice,
    story: Story,
    unrounded_demo: Path,
    shares: Shares,
    payload: PayloadFormat,
) -> None:
    """The demo model as it ships: a sum in another order rounds some activations to the next of 8 bits (``unrounded``).

    One such value moves logits by more than ``BOUNDS``, whatever the cluster does. The bound is what the rounding
    itself makes on one device: the cluster's answer is closer to that of one device than this to the exact one.
    """
    reference = one_device(DEMO).logits
    outcome = thread_run(cut_for(DEMO, shares), story.chunks, payload, everything)
    check(outcome.logits, reference, compare(one_device(unrounded_demo).logits, reference).of_range, story)


@pytest.mark.parametrize("layout", FURTHER, ids=str)
def test_pipelines_and_mixtures_answer_like_one_device(
    cut_for: CutFor, one_device: OneDevice, story: Story, unrounded_demo: Path, layout: str
) -> None:
    """As the shares before, which with these are more than ten layouts; weights stream on every rank."""
    reference = one_device(DEMO).logits
    for budget in (everything, half):
        outcome = thread_run(cut_for(DEMO, layout), story.chunks, PayloadFormat.F16, budget)
        check(outcome.logits, reference, compare(one_device(unrounded_demo).logits, reference).of_range, story)
    for payload in (PayloadFormat.F32, PayloadFormat.F16):
        outcome = thread_run(cut_for(unrounded_demo, layout), story.chunks, payload, everything)
        check(outcome.logits, one_device(unrounded_demo).logits, BOUNDS[payload], story)


def check(logits: Float32Array, reference: Float32Array, bound: float, story: Story) -> None:
    """Differences within ``bound``; near ties where the greedy token differs, and few of these."""
    difference = compare(logits, reference)
    print(f"{difference.of_range:.2e} of the range, {len(difference.positions)} other tokens")
    assert difference.of_range <= bound
    assert difference.gap_of_allowed <= 1
    in_answer = [position for position in difference.positions if position >= story.answering.start]
    assert len(in_answer) <= MOST_OTHER_TOKENS


def test_one_rank_tells_the_story_of_llama_cpp(one_device: OneDevice, story: Story) -> None:
    reference = reference_logits(DEMO, story.chunks, n_threads=1, context=CONTEXT)
    assert len(story.answer) == N_TOKENS
    assert reference[story.answering].argmax(axis=1).tolist() == story.answer
    assert range_difference(one_device(DEMO).logits, reference) <= 1e-5
