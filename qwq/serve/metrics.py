"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qwq.engine import LanguageModel

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_EACH = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_WHOLE = (0.01, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters of HTTP requests, latencies in seconds, and the engines' own counts, read when /metrics is asked."""

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "qwq_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self.duration = Histogram(
            "qwq_http_request_seconds", "From request to last byte", ["route"], buckets=_WHOLE, registry=registry
        )
        self.first_token = Histogram(
            "qwq_time_to_first_token_seconds",
            "From request to first token",
            ["model"],
            buckets=_FIRST,
            registry=registry,
        )
        self.per_token = Histogram(
            "qwq_time_per_output_token_seconds",
            "Time after the first token, per token, as the mean of one choice",
            ["model"],
            buckets=_EACH,
            registry=registry,
        )
        self.finished = Counter(
            "qwq_choices_finished", "Generated choices by why they ended", ["model", "reason"], registry=registry
        )
        registry.register(_Engines(models))


class _Engines(Collector):
    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        self.models = models

    def collect(self) -> Iterable[Metric]:
        return self._families()

    def _families(self) -> Iterator[Metric]:
        stats = {name: lm.stats() for name, lm in self.models.items()}
        gauges = {"running": "Requests being decoded", "waiting": "Requests in the queue"}
        counters = {"prompt_tokens": "Prompt tokens taken in", "generated_tokens": "Tokens generated"}
        for key, text in gauges.items():
            gauge = GaugeMetricFamily(f"qwq_requests_{key}", text, labels=["model"])
            for name, values in stats.items():
                gauge.add_metric([name], values[key])
            yield gauge
        for key, text in counters.items():
            counter = CounterMetricFamily(f"qwq_{key}", text, labels=["model"])
            for name, values in stats.items():
                counter.add_metric([name], values[key])
            yield counter
