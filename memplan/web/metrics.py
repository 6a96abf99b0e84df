"""Counters in Prometheus' text format, version 0.0.4.

    memplan_requests_total{method="POST",route="/api/v1/estimate",status="200"} 12
    memplan_request_seconds_bucket{route="/api/v1/estimate",le="0.01"} 11
    memplan_verdicts_total{fits="uncertain"} 3
    memplan_uncovered_total 1
    memplan_kept_answers_total 9, memplan_kept_bytes, memplan_waiting_requests

Labels come from closed sets (routes of the application, known methods), so that no client can make them grow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from starlette.types import Scope

from memplan.estimate import Fits
from memplan.web.answers import Answers
from memplan.web.tasks import Answer

BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
MEDIA_TYPE = "text/plain; version=0.0.4"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNMATCHED = "unmatched"


class Metrics:
    """What the service did since it started.

    Args:
        answers: whose cache and queue are shown.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.seconds: dict[str, list[int]] = {}
        self.total_seconds: dict[str, float] = {}
        self.verdicts: Counter[str] = Counter()
        self.uncovered = 0

    def observe(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one answer."""
        route = str(getattr(scope.get("route"), "path", _UNMATCHED))
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self.requests[method, route, status] += 1
        buckets = self.seconds.setdefault(route, [0] * (len(BUCKETS_SECONDS) + 1))
        buckets[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self.total_seconds[route] = self.total_seconds.get(route, 0.0) + seconds

    def count(self, answer: Answer) -> None:
        """Count what an estimate says."""
        if answer.fits:
            self.verdicts[answer.fits] += 1
        self.uncovered += answer.unsupported

    def exposition(self) -> bytes:
        """All counters as text."""
        return ("\n".join(self._lines()) + "\n").encode()

    def _lines(self) -> Iterator[str]:
        yield from _head("memplan_requests_total", "counter", "Answers by method, route and status.")
        for (method, route, status), count in sorted(self.requests.items()):
            yield f'memplan_requests_total{{method="{method}",route="{route}",status="{status}"}} {count}'
        yield from _head("memplan_request_seconds", "histogram", "Time to the whole answer.")
        for route, buckets in sorted(self.seconds.items()):
            total = 0
            for limit, count in zip((*BUCKETS_SECONDS, "+Inf"), buckets, strict=True):
                total += count
                yield f'memplan_request_seconds_bucket{{route="{route}",le="{limit}"}} {total}'
            yield f'memplan_request_seconds_sum{{route="{route}"}} {self.total_seconds[route]:.6f}'
            yield f'memplan_request_seconds_count{{route="{route}"}} {total}'
        yield from _head("memplan_verdicts_total", "counter", "Estimates that named a GPU, by verdict.")
        for fits in Fits:
            yield f'memplan_verdicts_total{{fits="{fits}"}} {self.verdicts[fits]}'
        yield from _head("memplan_uncovered_total", "counter", "Estimates with something that no rule covers.")
        yield f"memplan_uncovered_total {self.uncovered}"
        yield from _head("memplan_kept_answers_total", "counter", "Answers that were given again.")
        yield f"memplan_kept_answers_total {self.answers.hits}"
        yield from _head("memplan_kept_bytes", "gauge", "Bytes of kept answers.")
        yield f"memplan_kept_bytes {self.answers.cache.size_bytes}"
        yield from _head("memplan_waiting_requests", "gauge", "Requests that wait for a computing process.")
        yield f"memplan_waiting_requests {self.answers.work.waiting}"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"
