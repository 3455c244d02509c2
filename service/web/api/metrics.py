"""/metrics for Prometheus: the queue, what is done, what decides, how long answers take, errors.

Needs a token that may read, as everything: `reclass-plex token create prometheus`. Of GPUs there is
something only where there are some.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from reclass_plex.browse_statistics import NameCount, recent_seconds, statistics
from reclass_plex.gpus import GpuState, read_gpus_lightly
from service.web.api.context import Api

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
GPU_SECONDS = 10.0  # between looks at the GPUs: each starts a process
_GPU_PATIENCE = 2.0  # seconds for that process; a scrape has 10 as a rule
_BUCKETS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0, 30.0)


class Metrics:
    """The figures of one application. `observe` is called with every answer."""

    def __init__(self, api: Api) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._latency = Histogram(
            "reclass_plex_http_seconds",
            "Seconds to answer, by kind of answer",
            ["method", "status"],
            registry=self.registry,
            buckets=_BUCKETS,
        )
        self.registry.register(_Figures(api))

    def observe(self, method: str, status: int, seconds: float) -> None:
        """Note one answer."""
        known = method if method in {"GET", "HEAD", "POST", "DELETE"} else "other"
        self._latency.labels(known, f"{status // 100}xx").observe(seconds)


class _Figures(Collector):
    def __init__(self, api: Api) -> None:
        self._api = api
        self._gpus = _Gpus()

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        status = self._api.control.status()
        yield _by("queue", "Tracks in each state of the queue", "state", status.jobs.items())
        yield CounterMetricFamily(
            "reclass_plex_tracks_done", "Tracks that ended since the start", status.tracks_done
        )
        yield _one("tracks_per_minute", "Over the last minutes", status.per_minute)
        yield _one("seconds_left", "For all that is in line, at that rate", status.seconds_left)
        yield _one("models_loaded", "1: a worker has models in memory", float(status.models_loaded))
        yield _one("start_time_seconds", "Of the daemon, since the epoch", status.since)
        yield _one("plex_pending", "Tracks to be written to Plex", status.plex.pending)
        states = ("connected", "unreachable", "needs sign-in", "off")
        plex = [(one, float(status.plex.state == one)) for one in states]
        yield _by("plex_state", "1 for the state that Plex is in", "state", plex)
        figures = statistics(self._api.store)
        yield _one("library_tracks", "Tracks that are known", figures.tracks)
        yield _one("library_written", "Tracks whose genre we wrote", figures.written)
        yield _by(
            "library_stage", "Tracks by the stage that decided", "stage", _pairs(figures.stages)
        )
        yield _by("library_genre", "Tracks by the genre heard first", "genre",
                  [(one.name, one.count) for one in figures.genres])  # fmt: skip
        yield _by("library_unsure", "Tracks without a sure genre", "why", _pairs(figures.unsure))
        yield _by(
            "file_errors", "Files that cannot be read, by kind", "kind", _pairs(figures.errors)
        )
        yield _by("stage_seconds", "Mean seconds of a stage, of the newest verdicts", "stage",
                  recent_seconds(self._api.store).items())  # fmt: skip
        yield from _gpu_families(self._gpus.look(time.monotonic()))


class _Gpus:
    """The GPUs as they were at the last look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: tuple[GpuState, ...] = ()
        self._next_look = 0.0

    def look(self, clock: float) -> tuple[GpuState, ...]:
        with self._lock:
            if clock >= self._next_look:
                self._states = read_gpus_lightly(_GPU_PATIENCE)
                self._next_look = time.monotonic() + GPU_SECONDS
            return self._states


def _gpu_families(states: tuple[GpuState, ...]) -> Iterator[Metric]:
    """Return what is known; a figure that nobody tells is left out, for 0 would be one."""
    for name, text, values in (
        ("memory_used_bytes", "In use by all programs", [_mib(one.used) for one in states]),
        ("memory_bytes", "Memory there is", [_mib(one.total) for one in states]),
        (
            "busy_ratio",
            "Share of the time in which it worked",
            [_percent(one.use) for one in states],
        ),
    ):
        family = GaugeMetricFamily(f"reclass_plex_gpu_{name}", text, labels=["gpu", "name"])
        for number, (state, value) in enumerate(zip(states, values, strict=True)):
            if value is not None:
                family.add_metric([str(number), state.name], value)
        if family.samples:
            yield family


def _mib(value: float | None) -> float | None:
    return None if value is None else value * 2**20


def _percent(value: float | None) -> float | None:
    return None if value is None else value / 100


def router(metrics: Metrics) -> APIRouter:
    """Return the route."""
    routes = APIRouter(redirect_slashes=False, tags=["daemon"])

    @routes.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def show(request: Request) -> Response:
        """Return figures for Prometheus."""
        return Response(generate_latest(metrics.registry), headers={"Content-Type": MEDIA_TYPE})

    return routes


def _by(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(f"reclass_plex_{name}", text, labels=[label])
    for key, value in values:
        family.add_metric([key], value)
    return family


def _one(name: str, text: str, value: float | None) -> Metric:
    family = GaugeMetricFamily(f"reclass_plex_{name}", text)
    if value is not None:
        family.add_metric([], value)
    return family


def _pairs(counts: tuple[NameCount, ...]) -> list[tuple[str, float]]:
    return [(one.name, float(one.count)) for one in counts]
