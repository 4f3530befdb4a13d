"""Metrics of the server in Prometheus's text format, in a registry of its own.

    wenlan_requests_total{route,status}           answers
    wenlan_request_seconds{route}                 from a request's headers to the end of its answer
    wenlan_batch_size{modality}                   inputs of a batch
    wenlan_batch_seconds{modality}                time of a tower on a batch
    wenlan_queue_depth{modality}                  inputs that are admitted and not yet answered
    wenlan_refused_total{reason}                  requests that were refused, by the code of their error
    wenlan_body_bytes                             bytes of requests' bodies in memory
    wenlan_model_up                               1 while the model thread runs

Beside them the process's memory, CPU time and files. A route is one of the server's own, whatever path is asked for, so
that no client can add a label.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

TEXT = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128)


class Metrics:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("wenlan_requests", "Answers", ("route", "status"), registry=self._registry)
        self._refused = Counter("wenlan_refused", "Requests that were refused", ("reason",), registry=self._registry)
        self._depth = Gauge("wenlan_queue_depth", "Inputs not yet answered", ("modality",), registry=self._registry)
        self._bodies = Gauge("wenlan_body_bytes", "Bytes of bodies in memory", registry=self._registry)
        self._up = Gauge("wenlan_model_up", "Whether the model thread runs", registry=self._registry)
        self._seconds = self._histogram("wenlan_request_seconds", "Time of an answer", "route", _SECONDS)
        self._size = self._histogram("wenlan_batch_size", "Inputs of a batch", "modality", _SIZES)
        self._batch_s = self._histogram("wenlan_batch_seconds", "Time of a batch", "modality", _SECONDS)

    def _histogram(self, name: str, text: str, label: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, (label,), registry=self._registry, buckets=buckets)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_refusal(self, reason: str) -> None:
        """Count a refusal; `reason` is the code of an error."""
        self._refused.labels(reason).inc()

    def count_batch(self, modality: str, size: int, seconds: float) -> None:
        self._size.labels(modality).observe(size)
        self._batch_s.labels(modality).observe(seconds)

    def watch(self, depth: dict[str, Callable[[], int]], is_up: Callable[[], bool]) -> None:
        """Read these values at every scrape."""
        for modality, of in depth.items():
            self._depth.labels(modality).set_function(of)
        self._up.set_function(lambda: float(is_up()))

    def watch_bodies(self, held: Callable[[], int]) -> None:
        """Read the bytes of request bodies at every scrape."""
        self._bodies.set_function(held)

    def text(self) -> bytes:
        """All values now, as TEXT."""
        return generate_latest(self._registry)
