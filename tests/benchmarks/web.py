"""What the service does under load on the loopback: latency, throughput, start-up and memory.

    python -m tests.benchmarks.web                       half a minute
    python -m tests.benchmarks.web --memory 50000        and memory over so many requests
    python -m tests.benchmarks.web --workers 2

Before anything is measured, a visitor looks at a page and all its sections, as in production: the process for plans runs.

Two kinds of load: `new` asks another question every time, so that every answer is computed; `repeated` asks fifty questions
again and again, as CI does. Latency at a steady rate is counted from when a request was due, not from when it could be sent.
The load is made in this process: on few cores it takes some of what it measures. On a machine that others use, compare
processor times: the bound they set is what the processes could answer with a core each.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from memplan.web.pages.keys import query_of
from tests.web.service import Service, running_service

GOALS = {
    "start-up": 1.0, "RSS": 150 * 2**20, "p50": 0.008, "p99": 0.030, "saturated": 400.0, "page": 0.040, "growth": 0.05,
}  # fmt: skip
MODELS = (
    "mistralai/Mistral-7B-v0.1", "meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-7B", "google/gemma-2-9b", "microsoft/phi-2",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "HuggingFaceTB/SmolLM2-135M",
)  # fmt: skip
METHODS: tuple[dict[str, Any], ...] = (
    {"method": "qlora", "optim": "paged_adamw_8bit"},
    {"method": "lora", "lora_r": 16, "target_modules": "all-linear"},
    {"method": "lora", "activation_checkpointing": True},
    {"method": "full", "precision": "amp", "dtype": "float32"},
)
CONNECTIONS = 50
VISIT = "model=mistralai/Mistral-7B-v0.1&method=lora&micro_batch_size=4&gpu=rtx-4090"
SECTIONS = ("/?", "/fragments/changes?", "/fragments/gpus?", "/fragments/methods?")


@dataclass
class Load:
    """What was seen.

    Attributes:
        latencies: seconds of each answer.
        errors: how many answers were not 200.
    """

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds


class Connection:
    """One kept-alive connection."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def open(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    def close(self) -> None:
        self.writer.close()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self.reader.readexactly(length)


_SEEDS = itertools.count()


def recipes(kind: str) -> Iterator[dict[str, Any]]:
    """Recipes without end: others than ever before, or fifty again and again."""
    chosen = random.Random(next(_SEEDS) if kind == "new" else -1)
    pairs = list(itertools.product(MODELS, METHODS))
    different = (
        {"model": model, "gpu": "rtx-4090", "micro_batch_size": batch, "sequence_length": length} | method
        for _ in itertools.count()
        for model, method in [chosen.choice(pairs)]
        for batch, length in [(chosen.randint(1, 32), chosen.randint(64, 2048))]
    )
    return different if kind == "new" else itertools.cycle(itertools.islice(different, 50))


def posts(kind: str) -> Iterator[bytes]:
    """Requests for estimates."""
    for recipe in recipes(kind):
        body = json.dumps(recipe).encode()
        head = f"POST /api/v1/estimate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        yield head.encode() + b"\r\n\r\n" + body


def pages(path: str) -> Iterator[bytes]:
    """Requests for the page with an answer, or for the answer alone."""
    for recipe in recipes("new"):
        query = query_of(recipe)
        yield f"GET {path}?{query} HTTP/1.1\r\nHost: x\r\nAccept: text/html\r\n\r\n".encode()


async def steady(port: int, requests: Iterator[bytes], rate: float, seconds: float) -> Load:
    """`rate` requests a second, whether or not the earlier ones are answered."""
    load = Load()
    idle = [await Connection(port).open() for _ in range(CONNECTIONS)]
    started = time.perf_counter()

    async def one(due: float, request: bytes) -> None:
        connection = idle.pop() if idle else await Connection(port).open()
        status, _ = await connection.ask(request)
        load.latencies.append(time.perf_counter() - due)
        load.errors += status != 200
        idle.append(connection)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(one(due, next(requests)))
    load.seconds = time.perf_counter() - started
    for connection in idle:
        connection.close()
    return load


async def saturated(
    port: int, requests: Iterator[bytes], connections: int, *, count: int = 0, seconds: float = 1e9
) -> Load:
    """Every connection asks again as soon as it is answered; ends after `count` requests or `seconds`."""
    load = Load()
    started = time.perf_counter()
    left = itertools.repeat(None, count) if count else itertools.repeat(None)

    async def one() -> None:
        connection = await Connection(port).open()
        for _ in left:
            before = time.perf_counter()
            if before - started > seconds:
                break
            status, _body = await connection.ask(next(requests))
            load.latencies.append(time.perf_counter() - before)
            load.errors += status != 200
        connection.close()

    await asyncio.gather(*(one() for _ in range(connections)))
    load.seconds = time.perf_counter() - started
    return load


def row(name: str, value: str, *, goal: str = "", met: bool | None = None) -> None:
    verdict = "" if met is None else "met" if met else "MISSED"
    print(f"{name:<44} {value:>26}   {goal:<12} {verdict}", flush=True)


def ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms"


def mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def latency_row(name: str, load: Load, p50: float, p99: float | None = None) -> None:
    text = f"p50 {ms(load.quantile(0.5))}, p99 {ms(load.quantile(0.99))}"
    met = load.quantile(0.5) <= p50 and (p99 is None or load.quantile(0.99) <= p99) and not load.errors
    goal = f"<= {1e3 * p50:.0f}" + (f" / {1e3 * p99:.0f} ms" if p99 else " ms")
    row(name + (f", {load.errors} errors" if load.errors else ""), text, goal=goal, met=met)


def rss_row(service: Service, name: str = "RSS") -> None:
    """Resident memory of all processes, and the same with what they share counted once."""
    each = service.rss_bytes()
    text = " + ".join(f"{one / 2**20:.0f}" for one in each)
    row(name, f"{text} = {mib(sum(each))}", goal="<= 150 MiB", met=sum(each) <= GOALS["RSS"])
    row("  shared memory counted once", mib(sum(service.pss_bytes())))


def visit(port: int) -> None:
    """Look at one page as a browser does, and say how long each part took the first time."""
    for path in SECTIONS:
        started = time.perf_counter()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}{VISIT}", timeout=60) as answer:
            size = len(answer.read())
        row(f"first visit, {path[:-1]}", f"{ms(time.perf_counter() - started)}, {size / 1000:.1f} KB")


async def measure(service: Service, seconds: float, memory: int) -> None:
    port = service.port
    rss_row(service, "RSS at first")
    visit(port)
    rss_row(service, "RSS while the last search ends")
    await asyncio.sleep(1)
    rss_row(service, "RSS after one page")
    await saturated(port, posts("new"), 4, count=1000)  # every model and method, with batches of one and more
    for kind in ("new", "repeated"):
        load = await steady(port, posts(kind), 100, seconds)
        latency_row(f"POST /estimate, {kind}, 100 a second", load, GOALS["p50"], GOALS["p99"])
    for kind in ("new", "repeated"):
        before = service.cpu_seconds()
        load = await saturated(port, posts(kind), CONNECTIONS, seconds=seconds)
        used = [
            1e3 * (now - then) / len(load.latencies) for now, then in zip(service.cpu_seconds(), before, strict=False)
        ]
        row(
            f"POST /estimate, {kind}, {CONNECTIONS} connections",
            f"{load.rate:.0f} a second",
            goal=f">= {GOALS['saturated']:.0f}",
            met=load.rate >= GOALS["saturated"] and not load.errors,
        )
        row("  processor time of each process an answer", " + ".join(f"{one:.2f}" for one in used) + " ms")
        if max(used) >= 0.01:
            row("  at most, with a core for each process", f"{1e3 / max(used):.0f} a second")
        row("  latency", f"p50 {ms(load.quantile(0.5))}, p99 {ms(load.quantile(0.99))}, {load.errors} errors")
    for name, path in (("the whole page", "/"), ("its answer alone", "/fragments/answer")):
        load = await steady(port, pages(path), 10, seconds)
        latency_row(f"{name}, new, 10 a second", load, GOALS["page"])
    rss_row(service, "RSS at last")
    if memory:
        await measure_memory(service, memory)


async def measure_memory(service: Service, requests: int) -> None:
    """Resident memory over many requests, all different; the first tenth fills caches of fixed size."""
    source = posts("new")
    await saturated(service.port, source, CONNECTIONS, count=max(requests // 10, 1))
    seen = [sum(service.rss_bytes())]
    errors = 0
    for _ in range(9):
        load = await saturated(service.port, source, CONNECTIONS, count=requests // 10)
        errors += load.errors
        seen.append(sum(service.rss_bytes()))
    row("RSS by tenths", ", ".join(f"{one / 2**20:.0f}" for one in seen) + " MiB")
    growth = statistics.mean(seen[-3:]) / statistics.mean(seen[:3]) - 1
    row(
        f"growth over {requests} requests, {errors} errors",
        f"{100 * growth:+.1f} %",
        goal="<= 5 %",
        met=growth <= GOALS["growth"] and not errors,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="memory over N requests")
    parser.add_argument("--workers", type=int, default=1, help="computing processes of the service")
    given = parser.parse_args()
    row("processes that wait for a core", f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with running_service("--workers", str(given.workers)) as service:
        row("start-up", ms(service.start_seconds), goal="<= 1 s", met=service.start_seconds <= GOALS["start-up"])
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(measure(service, given.seconds, given.memory))
        problems = [line for line in service.log if " WARNING " in line or " ERROR " in line]
        if problems:
            print(*problems[:20], sep="")


if __name__ == "__main__":
    main()
