"""`memplan serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from memplan.errors import InvalidValueError, UnavailableError

MOST_WORKERS = 256

HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on.")]
PortOption = Annotated[int, typer.Option("--port", metavar="INT", help="Port to listen on; 0 takes a free one.")]
WorkersOption = Annotated[int, typer.Option("--workers", metavar="INT", help="Processes that compute answers.")]
RateOption = Annotated[
    int | None,
    typer.Option("--rate-limit", metavar="INT", help="Requests a minute and client; no limit by default."),
]
MetricsOption = Annotated[bool, typer.Option("--metrics", help="Show counters for Prometheus at /metrics.")]
RootPathOption = Annotated[
    str, typer.Option("--root-path", metavar="PATH", help="Where a proxy mounts the service, such as /memplan.")
]
ProxyOption = Annotated[
    str,
    typer.Option("--trusted-proxies", metavar="LIST", help="Addresses whose X-Forwarded-For is believed."),
]
LogOption = Annotated[bool, typer.Option("--log-requests", help="Log each request: method, path, status, time, id.")]


def serve(
    *,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    workers: WorkersOption = 1,
    rate_limit: RateOption = None,
    metrics: MetricsOption = False,
    root_path: RootPathOption = "",
    trusted_proxies: ProxyOption = "",
    log_requests: LogOption = False,
) -> int:
    """Serve the web page and the REST API until interrupted.

    Exit code 2: a wrong option. 4: the web extra is missing, or the address is taken.
    """
    if not 1 <= workers <= MOST_WORKERS:
        raise InvalidValueError("workers", workers, f"a number from 1 to {MOST_WORKERS}")
    if rate_limit is not None and not 1 <= rate_limit <= 1_000_000:
        raise InvalidValueError("rate-limit", rate_limit, "requests a minute, from 1 to 1000000")
    if root_path and (not root_path.startswith("/") or root_path.endswith("/")):
        raise InvalidValueError("root-path", root_path, "a path that begins with a slash and ends without one")
    try:
        from memplan.web.server import serve as run
        from memplan.web.settings import Settings
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "memplan":
            raise
        raise UnavailableError(
            f"the web service needs {error.name}, which is not installed", hint='pip install "memplan[web]"'
        ) from None
    settings = Settings(processes=workers, rate_limit=rate_limit, metrics=metrics, root_path=root_path)
    run(settings, host=host, port=port, log_requests=log_requests, trusted_proxies=trusted_proxies)
    return 0
