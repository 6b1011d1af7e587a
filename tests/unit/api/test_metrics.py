"""The text that Prometheus reads, read by its own parser."""

from prometheus_client.parser import text_string_to_metric_families

from tests.unit.cli.states import cluster_state
from tpi.api.metrics import metrics
from tpi.engine.scheduler import Load
from tpi.engine.tally import Tally


class Sources:
    def __init__(self) -> None:
        self.tally, self.n_cells = Tally(), 1000

    def load(self) -> Load:
        return Load(2, 3, 250)


def test_the_text() -> None:
    sources = Sources()
    sources.tally.n_prompt_tokens, sources.tally.n_cached_tokens, sources.tally.n_tokens = 70, 30, 9
    sources.tally.ended["cancelled"], sources.tally.read_s = 4, 8.0
    for value in (0.003, 0.3, 10_000):
        sources.tally.first_s.add(value)
    text = metrics('a "model"', sources, cluster_state(2, grown_by=5)).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families.values()
        for sample in family.samples
    }
    here = ('a "model"',)
    assert values["llamacpp:prompt_seconds_total",] == 8 and values["llamacpp:prompt_tokens_seconds",] == 5
    assert values["vllm:num_requests_running", *here] == 2 and values["llamacpp:requests_deferred",] == 3
    assert values["vllm:kv_cache_usage_perc", *here] == 0.25
    assert values["vllm:prompt_tokens_total", *here] == 70 and values["llamacpp:prompt_tokens_total",] == 40
    assert values["vllm:prefix_cache_hits_total", *here] == 30 and values["vllm:generation_tokens_total", *here] == 9
    assert values["vllm:request_success_total", *here, "abort"] == 4
    assert values["tpi:rank_disk_read_bytes_total", "1", "device-1"] == 5000
    assert values["tpi:rank_memory_bytes", "0", "device-0"] == 90_000_000
    first = families["vllm:time_to_first_token_seconds"]
    buckets = {sample.labels["le"]: sample.value for sample in first.samples if sample.name.endswith("_bucket")}
    assert first.type == "histogram" and (buckets["0.001"], buckets["0.005"], buckets["+Inf"]) == (0, 1, 3)
    assert list(buckets.values()) == sorted(buckets.values()) and len(buckets) > 10
    assert values["vllm:time_to_first_token_seconds_count", *here] == 3
    assert families["vllm:request_queue_time_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())
