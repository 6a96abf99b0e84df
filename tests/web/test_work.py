"""Computing beside the event loop: what hangs, crashes or fills the memory ends, and the service goes on."""

from __future__ import annotations

import asyncio
import json
import mmap
import operator
import os
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from starlette.testclient import TestClient

from memplan.errors import InvalidValueError
from memplan.units import MIB
from memplan.web import tasks
from memplan.web.answers import Answers
from memplan.web.app import create_app
from memplan.web.caching import Cache
from memplan.web.pages.tasks import methods_html
from memplan.web.patterns import check_patterns
from memplan.web.problems import ProblemError
from memplan.web.settings import Settings
from memplan.web.work import LOST, Work, WorkerBugError
from tests.web import aio
from tests.web.models import SMALL

Result = TypeVar("Result")

CATASTROPHE = "(a+)+$"


def with_work(check: Callable[[Work], Awaitable[Result]], **settings: Any) -> Result:
    """Run `check` with computing processes."""

    async def run() -> Result:
        work = Work(Settings(**settings))
        work.start()
        try:
            await work.run(os.getpid, timeout_seconds=30)  # it is up
            return await check(work)
        finally:
            work.stop()

    return aio.run(run())


def test_what_hangs_is_ended_and_replaced() -> None:
    async def check(work: Work) -> None:
        first = await work.run(os.getpid)
        started = time.perf_counter()
        with pytest.raises(ProblemError) as caught:
            await work.run(re.search, CATASTROPHE, "a" * 40 + "b", timeout_seconds=0.2)
        assert time.perf_counter() - started < 2
        assert (caught.value.problem.status, caught.value.problem.code) == (503, "timeout")
        second = await work.run(os.getpid)
        assert second != first
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)

    with_work(check)


def test_the_event_loop_goes_on_meanwhile() -> None:
    async def check(work: Work) -> float:
        job = asyncio.create_task(work.run(re.search, CATASTROPHE, "a" * 40 + "b", timeout_seconds=0.4))
        slowest = 0.0
        while not job.done():
            before = time.perf_counter()
            await asyncio.sleep(0)
            slowest = max(slowest, time.perf_counter() - before)
        with pytest.raises(ProblemError):
            await job
        return slowest

    assert with_work(check) < 0.35


def test_a_process_that_ends_is_replaced() -> None:
    async def check(work: Work) -> None:
        with pytest.raises(ProblemError) as caught:
            await work.run(os._exit, 1)
        assert caught.value.problem.code == "out_of_resources"
        assert await work.run(abs, -1) == 1

    with_work(check)


def test_a_process_that_ended_unseen_costs_no_answer() -> None:
    async def check(work: Work) -> None:
        os.kill(await work.run(os.getpid), 9)
        await asyncio.sleep(0.1)
        assert await work.run(abs, -1) == 1

    with_work(check)


def test_memory_has_an_end() -> None:
    async def check(work: Work) -> None:
        with pytest.raises(ProblemError) as caught:
            await work.run(bytes, 4 * 2**30)
        assert caught.value.problem.code == "out_of_resources"
        assert await work.run(abs, -1) == 1

    with_work(check)


def test_a_process_that_has_grown_is_replaced_after_its_answer() -> None:
    async def check(work: Work) -> None:
        first = await work.run(os.getpid)
        assert len(await work.run(operator.mul, b"x", 100 * 2**20, timeout_seconds=30)) == 100 * 2**20
        second = await work.run(os.getpid)
        assert second != first
        assert await work.run(os.getpid) == second

    with_work(check, max_process_bytes=100 * 2**20)


def test_a_queue_has_an_end() -> None:
    async def check(work: Work) -> None:
        jobs = [asyncio.create_task(work.run(time.sleep, 0.3)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert work.waiting == 2
        with pytest.raises(ProblemError) as caught:
            await work.run(abs, -1)
        assert caught.value.problem.code == "overloaded"
        assert dict(caught.value.problem.headers)["Retry-After"] == "1"
        await asyncio.gather(*jobs)
        assert work.waiting == 0

    with_work(check, max_waiting=2)


def test_waiting_counts_as_time() -> None:
    async def check(work: Work) -> None:
        job = asyncio.create_task(work.run(time.sleep, 0.5))
        await asyncio.sleep(0.05)
        with pytest.raises(ProblemError) as caught:
            await work.run(abs, -1, timeout_seconds=0.1)
        assert caught.value.problem.code == "overloaded"
        await job
        assert await work.run(abs, -1) == 1

    with_work(check)


def test_who_goes_away_does_not_take_the_process_along() -> None:
    async def check(work: Work) -> None:
        process = await work.run(os.getpid)
        job = asyncio.create_task(work.run(time.sleep, 0.2))
        waiting = asyncio.create_task(work.run(time.sleep, 0.2))
        await asyncio.sleep(0.05)
        for task in (waiting, job):
            task.cancel()
        await asyncio.gather(job, waiting, return_exceptions=True)
        assert work.waiting == 0
        assert await work.run(os.getpid) == process

    with_work(check)


def test_a_bug_is_told_from_a_mistake() -> None:
    async def check(work: Work) -> None:
        with pytest.raises(WorkerBugError, match="ZeroDivisionError"):
            await work.run(divmod, 1, 0)
        with pytest.raises(ProblemError) as caught:
            await work.run(tasks.estimate, {"model": "nope"})
        assert caught.value.problem.field == "model"

    with_work(check)


def test_several_processes_work_at_once() -> None:
    async def check(work: Work) -> None:
        job = asyncio.create_task(work.run(time.sleep, 30, timeout_seconds=60))
        await asyncio.sleep(0)
        assert await work.run(abs, -1, timeout_seconds=30) == 1
        assert not job.done()
        job.cancel()

    with_work(check, processes=2)


def test_what_takes_seconds_keeps_nobody_waiting() -> None:
    async def check(work: Work) -> None:
        job = asyncio.create_task(work.run(time.sleep, 30, slow=True))
        await asyncio.sleep(0)
        assert await work.run(abs, -1) == 1
        assert not job.done()
        job.cancel()
        with pytest.raises(ProblemError):
            await work.run(time.sleep, 30, slow=True, timeout_seconds=0.1)

    with_work(check)


def test_the_process_for_what_takes_seconds_ends_when_idle() -> None:
    async def check(work: Work) -> None:
        first = await work.run(os.getppid, slow=True)
        assert await work.run(os.getppid, slow=True) == first
        await asyncio.sleep(0.3)
        with pytest.raises(ProcessLookupError):
            os.kill(first, 0)
        assert await work.run(os.getppid, slow=True) != first
        assert await work.run(os.getpid) != first

    with_work(check, slow_idle_seconds=0.1)


def test_what_searches_import_is_there_before_the_first_of_them() -> None:
    async def check(work: Work) -> None:
        modules = await work.run(eval, "[*__import__('sys').modules]", slow=True)
        assert {"memplan.planner", "memplan.budget", "memplan.web.pages.elsewhere"} <= set(modules)
        assert not {"fastapi", "starlette"} & set(modules)

    with_work(check)


def test_what_takes_seconds_leaves_nothing_in_memory() -> None:
    async def check(work: Work) -> None:
        template = await work.run(os.getppid, slow=True)
        before = resident_bytes(template)
        child = await work.run(os.getpid, slow=True)
        assert child != template
        section = await work.run(methods_html, "model=openai-community/gpt2&gpu=t4&sequence_length=64", "", slow=True)
        assert section.body
        assert await work.run(os.getppid, slow=True) == template
        assert resident_bytes(template) < before + 4 * MIB
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)

    with_work(check)


def resident_bytes(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_child_that_dies_is_lost_and_replaced() -> None:
    async def check(work: Work) -> None:
        template = await work.run(os.getppid, slow=True)
        with pytest.raises(ProblemError) as raised:
            await work.run(os._exit, 3, slow=True)
        assert raised.value.problem is LOST
        assert await work.run(os.getppid, slow=True) != template

    with_work(check)


def test_a_child_that_hangs_is_ended_with_its_process() -> None:
    async def check(work: Work) -> None:
        template = await work.run(os.getppid, slow=True)
        job = asyncio.create_task(work.run(time.sleep, 30, slow=True, timeout_seconds=0.3))
        await asyncio.sleep(0.15)
        (child,) = Path(f"/proc/{template}/task/{template}/children").read_text().split()
        with pytest.raises(ProblemError):
            await job
        assert [process for process in (template, int(child)) if Path(f"/proc/{process}").exists()] == []
        assert await work.run(os.getpid, slow=True)

    with_work(check)


def test_stopping_leaves_no_process() -> None:
    async def run() -> int:
        work = Work(Settings())
        work.start()
        process = await work.run(os.getpid, timeout_seconds=30)
        job = asyncio.create_task(work.run(time.sleep, 30))
        await asyncio.sleep(0.05)
        work.stop()
        await asyncio.gather(job, return_exceptions=True)
        return process

    with pytest.raises(ProcessLookupError):
        os.kill(aio.run(run()), 0)


# -- kept answers -----------------------------------------------------------------------------------------


def test_one_question_is_computed_once_however_many_ask() -> None:
    body = json.dumps({"model": SMALL, "sequence_length": 16}).encode()

    async def check(work: Work) -> None:
        answers = Answers(work, 2**20)
        kept = await asyncio.gather(*(answers.get(tasks.estimate_body, body, 32) for _ in range(20)))
        assert len({id(one) for one in kept}) == 1
        assert answers.hits == 0
        assert await answers.get(tasks.estimate_body, body, 32) is kept[0]
        assert answers.hits == 1

    with_work(check, max_waiting=0)


def test_who_asks_first_may_go_away() -> None:
    async def check(work: Work) -> None:
        answers = Answers(work, 2**20)
        first = asyncio.create_task(answers.get(tasks.gpus))
        second = asyncio.create_task(answers.get(tasks.gpus))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).answer.body
        assert first.cancelled()

    with_work(check)


def test_no_answer_in_time_is_not_kept() -> None:
    async def check(work: Work) -> None:
        answers = Answers(work, 2**20)
        with pytest.raises(ProblemError):
            await answers.get(time.sleep, 5)  # type: ignore[arg-type]
        assert len(answers.cache) == 0

    with_work(check, timeout_seconds=0.1)


def test_the_cache_keeps_the_last_used_up_to_its_size() -> None:
    cache: Cache[str] = Cache(3 * (100 + Cache.ENTRY_OVERHEAD_BYTES))
    for key in (b"a", b"b", b"c"):
        cache.put(key, key.decode(), 100)
    assert cache.get(b"a") == "a"
    cache.put(b"d", "d", 100)
    assert [cache.get(key) for key in (b"a", b"b", b"c", b"d")] == ["a", None, "c", "d"]
    assert cache.size_bytes == cache.max_bytes
    cache.put(b"a", "A", 50)
    assert (cache.get(b"a"), cache.size_bytes) == ("A", cache.max_bytes - 50)
    cache.put(b"large", "", cache.max_bytes)
    assert cache.get(b"large") is None
    assert len(cache) == 3


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache: Cache[str] = Cache(0)
    cache.put(b"a", "a", 0)
    assert len(cache) == cache.size_bytes == 0


# -- patterns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern",
    [
        CATASTROPHE, "(a|aa)+", "(a*)*", "(?:a+)+", "((a)+)", "(.*)+x", "(a+){2,}", "(ab){3}", "(?=a)a", "(?<!a)b",
        "(?i)a", "(?s:a)", "(a)\\1", ".*.*.*.*", "a*b+c{2,}d*", "x" * 513, "(?P<n>a+)+", "[)]+(a+)+", "\\((a+)+",
        "(?>a+)+", "(?P=n)",
    ],
)  # fmt: skip
def test_costly_patterns_are_refused(pattern: str) -> None:
    for value in (pattern, [pattern], {"target_modules": pattern}, {pattern: 8}, {"a": {"b": [pattern]}}):
        with pytest.raises(InvalidValueError, match="peft"):
            check_patterns({"peft": value})


@pytest.mark.parametrize(
    "pattern",
    [
        "all-linear", "q_proj", r".*\.(q|k|v|o)_proj$", r"model\.layers\.\d+\.self_attn\.(q|v)_proj", r"^(?!x)$"[:1],
        r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$", r"(?:base\.)?model\.layers\.[0-9]+\.mlp", "re:.*bias",
        r"layers\.(1[0-9]|2[0-3])\.", "a{1}", "model.layers.{0}", "(.*)", "a)?b", "x+?", "[*+]{1}",
    ],
)  # fmt: skip
def test_usual_patterns_are_taken(pattern: str) -> None:
    check_patterns({"peft": {"target_modules": [pattern]}})


def test_patterns_that_are_taken_cost_little() -> None:
    name = "model.layers.31.self_attn.very_long_module_name.q_proj.lora_A"
    for pattern in (".*a.*b.*c", ".+.+.+!", "[a-z.]*[a-z_]*[a-z0-9.]*!", "a*a*a*b"):
        check_patterns({"peft": pattern})
        started = time.process_time()
        assert re.fullmatch(pattern, name) is None
        assert time.process_time() - started < 0.05


@pytest.mark.parametrize(
    "key", ["target_modules", "peft", "trainable", "llm_int8_skip_modules", "optim_target_modules"]
)
def test_costly_patterns_are_refused_in_every_key(client: TestClient, key: str) -> None:
    value: Any = {"peft": {"exclude_modules": CATASTROPHE}, "trainable": [CATASTROPHE]}.get(key, CATASTROPHE)
    value = [CATASTROPHE] if key == "llm_int8_skip_modules" else value
    response = client.post("/api/v1/estimate", json={"model": SMALL, "method": "lora", key: value})
    assert response.status_code == 422
    assert "repeated groups" in response.json()["error"]["message"]


def test_costly_patterns_are_refused_inside_of_a_config(client: TestClient) -> None:
    config = SMALL | {
        "quantization_config": {"quant_method": "gptq", "bits": 4, "modules_to_not_convert": [CATASTROPHE]}
    }
    assert client.post("/api/v1/estimate", json={"model": config}).status_code == 422


# -- as the client sees it --------------------------------------------------------------------------------


def test_a_bug_is_an_envelope_without_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app()

    @app.get("/api/v1/bug")
    async def bug() -> None:
        raise ZeroDivisionError("secret")

    @app.get("/api/v1/bug-apart")
    async def bug_apart() -> None:
        await app.state.work.run(divmod, 1, 0)

    with TestClient(app) as client:
        for path in ("/api/v1/bug", "/api/v1/bug-apart"):
            response = client.get(path, headers={"X-Request-ID": "mine"})
            assert response.status_code == 500
            error = response.json()["error"]
            assert (error["code"], error["request_id"]) == ("internal_error", "mine")
            assert "ZeroDivision" not in response.text
            assert response.headers["content-security-policy"]
            assert "mine" in caplog.text
            assert "ZeroDivisionError" in caplog.text


def test_no_answer_in_time_is_a_503() -> None:
    with TestClient(create_app(Settings(timeout_seconds=0.001))) as client:
        response = client.post("/api/v1/estimate", json={"model": SMALL})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "timeout"
        assert int(response.headers["retry-after"]) > 0
        assert client.get("/healthz").status_code == 200


def test_a_batch_has_an_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with TestClient(create_app(Settings(batch_timeout_seconds=0.0, timeout_seconds=30))) as client:
        lines = client.post("/api/v1/estimate/batch", json={"recipes": [{"model": SMALL}] * 3}).text.splitlines()
    assert [json.loads(line)["error"]["code"] for line in lines] == ["timeout"] * 3
