"""What is counted of answers."""

import time
from dataclasses import dataclass, field

from tpi.engine.generation import Answer
from tpi.engine.tally import Histogram, Tally


@dataclass
class FakeGeneration:
    answer: Answer = field(default_factory=Answer)


def test_values_lie_in_the_bucket_of_the_next_bound() -> None:
    histogram = Histogram((1, 2))
    for value, n in ((0.5, 1), (1, 1), (1.5, 2), (7, 1)):
        histogram.add(value, n)
    assert histogram.counts == [2, 2, 1] and histogram.total == 11.5


def test_an_answer_is_counted_once_however_often_there_is_news() -> None:
    tally, told = Tally(), list[int]()
    watch, generation = tally.watch(lambda: told.append(1)), FakeGeneration()
    watch.tell()  # before anybody knows of which answer
    generation.answer = Answer(
        n_prompt_tokens=10, n_cached_tokens=8, n_tokens=1, time_to_first_token_s=0.2, queue_s=0.1
    )
    watch.begin(generation)  # type: ignore[arg-type]
    assert (tally.n_prompt_tokens, tally.n_cached_tokens, tally.n_tokens) == (10, 8, 1)
    for n_tokens in (1, 2, 5, 5):
        generation.answer = Answer(n_prompt_tokens=10, n_cached_tokens=8, n_tokens=n_tokens, time_to_first_token_s=0.2)
        watch.tell()
    for _ in range(2):
        generation.answer = Answer(n_prompt_tokens=10, n_tokens=5, finish="length")
        watch.tell()
    assert (tally.n_prompt_tokens, tally.n_tokens, dict(tally.ended)) == (10, 5, {"length": 1})
    assert sum(tally.gap_s.counts) == 4 and sum(tally.first_s.counts) == sum(tally.whole_s.counts) == 1
    assert tally.first_s.total == 0.2 and len(told) == 7
    assert tally.queue_s.total == 0.1 and sum(tally.queue_s.counts) == 1 and tally.read_s == 0.1


def test_a_prompt_whose_answer_has_no_words_counts_as_read() -> None:
    """So does a text that becomes a vector, with the time that it took."""
    tally, generation = Tally(), FakeGeneration(Answer(n_prompt_tokens=10, n_cached_tokens=2, finish="stop"))
    started_s = time.perf_counter()
    tally.watch(lambda: None).begin(generation)  # type: ignore[arg-type]
    assert 0 < tally.read_s <= time.perf_counter() - started_s
    assert (tally.n_prompt_tokens, tally.n_cached_tokens, sum(tally.prompt_sizes.counts)) == (10, 2, 1)
    assert tally.n_tokens == 0 and sum(tally.first_s.counts) == 0 and tally.ended["stop"] == 1


def test_a_request_that_got_no_token_counts_as_ended_only() -> None:
    tally, generation = Tally(), FakeGeneration(Answer(n_prompt_tokens=10, finish="cancelled"))
    tally.watch(lambda: None).begin(generation)  # type: ignore[arg-type]
    assert tally.n_prompt_tokens == 0 and sum(tally.first_s.counts) == 0 and tally.ended["cancelled"] == 1
