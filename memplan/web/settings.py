"""What the service allows, in one place. Sizes are bytes, times are seconds."""

from __future__ import annotations

from dataclasses import dataclass

from memplan.units import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Limits and switches of the service.

    Attributes:
        max_body_bytes: of a request, however it is sent.
        max_batch_body_bytes: of a batch, which holds up to `max_batch` recipes.
        max_upload_bytes: of a file posted to the page.
        max_query_bytes: of a query string.
        max_depth: of nested objects and lists in JSON.
        max_batch: recipes in one batch.
        max_checks: in one budget file.
        max_explained: estimates that one report on budgets may spend on saying what each changed key does.
        timeout_seconds: for one answer, waiting included.
        slow_timeout_seconds: for one answer that takes many estimates, such as a plan.
        slow_idle_seconds: after which the process for those ends.
        batch_timeout_seconds: for all answers of a batch.
        body_timeout_seconds: for a request's body to arrive.
        processes: that compute estimates, beside the one that speaks HTTP and the one for plans.
        max_process_bytes: resident memory of such a process; one that has grown beyond is replaced by a new one.
        max_waiting: requests that may wait for a process before others are turned away.
        cache_bytes: of answers kept; 0 keeps none.
        rate_limit: requests a minute and client; None sets no limit.
        metrics: whether `/metrics` exists.
        root_path: where a proxy mounts the service, without a slash at the end; the server must be told as well.
    """

    max_body_bytes: int = 64 * KIB
    max_batch_body_bytes: int = MIB
    max_upload_bytes: int = 256 * KIB
    max_query_bytes: int = 4 * KIB
    max_depth: int = 32
    max_batch: int = 1000
    max_checks: int = 50
    max_explained: int = 64
    timeout_seconds: float = 5.0
    slow_timeout_seconds: float = 20.0
    slow_idle_seconds: float = 20.0
    batch_timeout_seconds: float = 60.0
    body_timeout_seconds: float = 10.0
    processes: int = 1
    max_process_bytes: int = 192 * MIB
    max_waiting: int = 128
    cache_bytes: int = 16 * MIB
    rate_limit: int | None = None
    metrics: bool = False
    root_path: str = ""
