"""``/metrics``: figures in Prometheus' words, under the names that dashboards for vLLM and llama.cpp's server ask for,
and under ``tpi:`` what only a cluster has.

Everything is read when it is asked for; counting is the engine's (``engine/tally.py``).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from tpi.cluster.reports import ClusterStatus, RankStatus
from tpi.engine.scheduler import Load
from tpi.engine.tally import Histogram, Tally

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
"""Why answers end, in vLLM's words."""


class Sources(Protocol):
    """Where figures of the answers come from (``service.Service``)."""

    @property
    def tally(self) -> Tally: ...

    @property
    def n_cells(self) -> int: ...

    def load(self) -> Load: ...


def metrics(model: str, sources: Sources, status: ClusterStatus) -> bytes:
    """The whole text. To be called by the thread of the server's loop, whose processor time is told, too."""
    return generate_latest(_Figures(model, sources, status))


class _Figures(Collector):
    def __init__(self, model: str, sources: Sources, status: ClusterStatus) -> None:
        self._model, self._status = model, status
        self._tally, self._load, self._n_cells = sources.tally, sources.load(), sources.n_cells

    def collect(self) -> Iterator[Metric]:
        yield from self._answers()
        yield from self._times()
        yield from self._as_llama_cpp()
        yield from self._cluster()
        yield from _ranks(self._status.ranks)

    def _answers(self) -> Iterator[Metric]:
        tally, load = self._tally, self._load
        yield self._gauge("vllm:num_requests_running", "Answers that grow.", load.n_running)
        yield self._gauge("vllm:num_requests_waiting", "Requests that wait for a place.", load.n_waiting)
        used = min(load.n_tokens / self._n_cells, 1.0)
        yield self._gauge("vllm:kv_cache_usage_perc", "Part of the cells that answers under way use, at most 1.", used)
        for name, what, value in (
            ("vllm:prefix_cache_queries", "Tokens of prompts.", tally.n_prompt_tokens),
            ("vllm:prefix_cache_hits", "Tokens of prompts that were not computed again.", tally.n_cached_tokens),
            ("vllm:prompt_tokens", "Tokens of prompts.", tally.n_prompt_tokens),
            ("vllm:generation_tokens", "Tokens of answers.", tally.n_tokens),
        ):
            yield self._counter(name, what, value)
        ended = CounterMetricFamily(
            "vllm:request_success", "Answers, by why they ended.", labels=["model_name", "finished_reason"]
        )
        for finish, reason in _REASONS.items():
            ended.add_metric([self._model, reason], tally.ended[finish])
        yield ended

    def _times(self) -> Iterator[Metric]:
        tally = self._tally
        for name, what, histogram in (
            ("vllm:time_to_first_token_seconds", "From a request to its first token.", tally.first_s),
            ("vllm:time_per_output_token_seconds", "Between two tokens of an answer.", tally.gap_s),
            ("vllm:inter_token_latency_seconds", "Between two tokens of an answer.", tally.gap_s),
            ("vllm:request_queue_time_seconds", "From a request until it gets a place.", tally.queue_s),
            ("vllm:e2e_request_latency_seconds", "From a request to its end.", tally.whole_s),
            ("vllm:request_prompt_tokens", "Tokens of a prompt.", tally.prompt_sizes),
            ("vllm:request_generation_tokens", "Tokens of an answer.", tally.answer_sizes),
        ):
            family = HistogramMetricFamily(name, what, labels=["model_name"])
            family.add_metric([self._model], buckets=_buckets(histogram), sum_value=histogram.total)
            yield family

    def _as_llama_cpp(self) -> Iterator[Metric]:
        """These have no labels there."""
        tally, load = self._tally, self._load
        n_computed = tally.n_prompt_tokens - tally.n_cached_tokens
        for name, what, value in (
            ("prompt_tokens", "Tokens of prompts that were computed.", n_computed),
            ("prompt_seconds", "From places to first tokens, or to vectors.", tally.read_s),
            ("tokens_predicted", "Tokens of answers.", tally.n_tokens),
            ("tokens_predicted_seconds", "From the first tokens of answers to their last.", tally.gap_s.total),
        ):
            yield CounterMetricFamily(f"llamacpp:{name}", what, value=value)
        for name, what, value in (
            ("requests_processing", "Answers that grow.", load.n_running),
            ("requests_deferred", "Requests that wait for a place.", load.n_waiting),
            ("prompt_tokens_seconds", "Tokens of prompts a second.", n_computed / (tally.read_s or 1.0)),
            ("predicted_tokens_seconds", "Tokens of an answer a second.", tally.n_tokens / (tally.gap_s.total or 1.0)),
        ):
            yield GaugeMetricFamily(f"llamacpp:{name}", what, value=value)

    def _cluster(self) -> Iterator[Metric]:
        status = self._status
        yield self._gauge("tpi:epoch", "The number of the epoch.", status.epoch)
        yield self._gauge("tpi:ranks", "Devices that take part.", len(status.ranks))
        yield self._gauge("tpi:silent_ranks", "Devices that did not tell their figures in time.", len(status.silent))
        yield self._counter("tpi:api_cpu_seconds", "Processor time of the API's thread.", time.thread_time())

    def _gauge(self, name: str, what: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, what, labels=["model_name"])
        family.add_metric([self._model], value)
        return family

    def _counter(self, name: str, what: str, value: float) -> Metric:
        family = CounterMetricFamily(name, what, labels=["model_name"])
        family.add_metric([self._model], value)
        return family


_RANK_GAUGES: Sequence[tuple[str, str, Callable[[RankStatus], float | None]]] = (
    ("memory_bytes", "Memory of the process.", lambda rank: rank.rss_bytes),
    ("memory_peak_bytes", "The most memory that the process has had.", lambda rank: rank.peak_rss_bytes),
    ("memory_planned_bytes", "The peak that was planned.", lambda rank: rank.planned_bytes),
    ("memory_limit_bytes", "Memory that the process may have.", lambda rank: rank.memory_limit_bytes),
    ("window_bytes", "Memory for weights.", lambda rank: rank.window_bytes),
    ("pinned_bytes", "Weights that stay in memory.", lambda rank: rank.pinned_bytes),
    ("shard_bytes", "Weights of the rank.", lambda rank: rank.shard_bytes),
)
_RANK_COUNTERS: Sequence[tuple[str, str, Callable[[RankStatus], float]]] = (
    ("disk_read_bytes", "Weights that were read from the disk.", lambda rank: rank.streamed_bytes),
    ("disk_wait_seconds", "Time that computing waited for the disk.", lambda rank: rank.hold_s),
    ("compute_seconds", "Time that the rank computed.", lambda rank: rank.compute_s),
    ("sum_seconds", "Time in sums with other ranks.", lambda rank: rank.allreduce_s),
    ("sent_bytes", "Bytes that the rank sent to others.", lambda rank: rank.sent_bytes),
    ("received_bytes", "Bytes that the rank received from others.", lambda rank: rank.received_bytes),
    ("passes", "Passes.", lambda rank: rank.n_passes),
    ("sums", "Sums with other ranks.", lambda rank: rank.n_sums),
)


def _ranks(ranks: Sequence[RankStatus]) -> Iterator[Metric]:
    for families, make in ((_RANK_GAUGES, GaugeMetricFamily), (_RANK_COUNTERS, CounterMetricFamily)):
        for name, what, find in families:
            family = make(f"tpi:rank_{name}", what, labels=["rank", "device"])
            for rank in ranks:
                value = find(rank)
                if value is not None:
                    family.add_metric([str(rank.rank), rank.name], value)
            yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus counts in each bucket all that is at most its bound."""
    names = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
    return list(zip(names, map(float, accumulate(histogram.counts)), strict=True))
