"""`memplan serve`: how it starts, what it says, how it ends."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from memplan.cli.app import app as command_line
from memplan.web.settings import Settings
from tests.web.models import SMALL
from tests.web.service import Service, running_service


@pytest.fixture(scope="module")
def service() -> Service:
    with running_service("--log-requests", "--root-path", "/at") as running:
        yield running  # type: ignore[misc]


def ask(
    service: Service, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    answer = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def test_it_answers_where_it_says(service: Service) -> None:
    assert service.url == f"http://127.0.0.1:{service.port}/at"
    status, headers, body = ask(service, "POST", "/api/v1/estimate", {"model": SMALL, "sequence_length": 16})
    assert status == 200
    assert "server" not in headers
    assert json.loads(body)["peak"]["device_bytes"] > 0
    assert ask(service, "GET", "/healthz")[0] == 200


def test_it_logs_requests_without_what_they_ask(service: Service) -> None:
    ask(service, "GET", "/nowhere%0Ainjected?model=private", **{"X-Request-ID": "logged"})
    ask(service, "POST", "/api/v1/estimate", {"model": "private"}, **{"X-Request-ID": "logged-too"})
    lines = waited_for(service, "logged-too")
    assert [line for line in lines if " GET /at/nowhere?injected 404 " in line and line.endswith(" logged\n")]
    assert [line for line in lines if " POST /at/api/v1/estimate 422 " in line]
    assert not [line for line in lines if "private" in line]


def waited_for(service: Service, text: str) -> list[str]:
    for _ in range(200):
        lines = list(service.log)
        if any(text in line for line in lines):
            return lines
        time.sleep(0.02)
    raise AssertionError(lines)


def test_many_answers_come_over_one_connection_without_delay(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()
        seconds.append(time.perf_counter() - started)
    connection.close()
    assert min(seconds[1:]) < 0.03  # with Nagle's algorithm each of them takes 40 ms


def test_a_head_is_answered_without_a_body(service: Service) -> None:
    status, headers, body = ask(service, "HEAD", "/healthz")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_what_is_no_http_is_refused(service: Service) -> None:
    for garbage in (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
            connection.sendall(garbage)
            assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(service, "GET", "/healthz")[0] == 200


def test_a_head_without_end_is_refused(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000)
        assert connection.recv(100).startswith(b"HTTP/1.1 4")


def test_processes_end_with_the_service() -> None:
    with running_service("--workers", "2") as running:
        ask(running, "GET", "/api/v1/gpus")
        processes = running.processes()
        assert len(processes) == 3
        os.kill(running.process.pid, signal.SIGKILL)  # it cannot say goodbye
        running.process.wait(10)
        for _ in range(200):
            alive = [pid for pid in processes[1:] if Path(f"/proc/{pid}").exists()]
            if not alive:
                break
            time.sleep(0.05)
        assert alive == []


def test_an_interrupt_is_a_clean_end() -> None:
    with running_service() as running:
        running.process.send_signal(signal.SIGINT)
        assert running.process.wait(10) in (0, 130, -signal.SIGINT)
        assert "Traceback" not in "".join(running.log)


def test_a_half_sent_head_is_not_waited_for() -> None:
    code = """
import sys
from memplan.web import server
server.HEAD_TIMEOUT_SECONDS = 0.3
sys.exit(server.serve(server.Settings(), host="127.0.0.1", port=int(sys.argv[1])))
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", code, str(port)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "memplan serves" in process.stderr.readline()
        for before in (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                if before:
                    connection.sendall(before)
                    assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
                connection.sendall(b"GET / HTTP/1.1\r\nHo")
                while connection.recv(10_000):
                    pass
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


# -- options ----------------------------------------------------------------------------------------------


def code_of(*arguments: str) -> int:
    code: int = command_line(["serve", *arguments], standalone_mode=False)
    return code


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "65536"), ("--port", "-1"), ("--port", "http"), ("--workers", "0"), ("--workers", "1000"),
        ("--rate-limit", "0"), ("--root-path", "at"), ("--root-path", "/at/"), ("--bacth", "1"),
    ],
)  # fmt: skip
def test_wrong_options_are_usage_errors(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_taken_port_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert code_of("--port", str(taken.getsockname()[1])) == 4
    message = capsys.readouterr().err
    assert "in use" in message
    assert "--port" in message


def test_an_address_of_another_machine_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of("--host", "192.0.2.1") == 4
    assert "192.0.2.1 port 8000" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "jinja2"])
def test_a_missing_extra_says_what_to_install(package: str, tmp_path: Path) -> None:
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from memplan.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4
    assert f"needs {package}" in done.stderr
    assert 'pip install "memplan[web]"' in done.stderr


def test_settings_are_documented() -> None:
    documented = {line.strip().partition(":")[0] for line in (Settings.__doc__ or "").splitlines()}
    assert set(Settings.__slots__) <= documented  # type: ignore[attr-defined]
    assert logging.getLogger("memplan.web")
