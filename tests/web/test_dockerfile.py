"""The image: small, not root, without torch, and with everything that the service needs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
FINAL = LINES[max(number for number, line in enumerate(LINES) if line.startswith("FROM ")) :]


def test_what_is_copied_is_there_and_is_sent_to_the_builder() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in LINES if line.startswith("COPY ") for word in line.split()[1:-1]}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_it_does_not_run_as_root() -> None:
    (user,) = (line.split()[1] for line in FINAL if line.startswith("USER "))
    assert user.isdigit()
    assert int(user) > 1000
    assert FINAL.index(f"USER {user}") < next(
        number for number, line in enumerate(FINAL) if line.startswith("ENTRYPOINT")
    )


def test_it_says_whether_it_is_well() -> None:
    text = "\n".join(FINAL)
    assert "/healthz" in text
    assert "HEALTHCHECK" in text
    assert 'ENTRYPOINT ["memplan", "serve"]' in text
    assert "gcc" not in text


def test_nothing_that_runs_models_is_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["web"]]
    names = {re.split(r"[<>=\[ ]", one)[0] for one in needed}
    assert names == {"pydantic", "pyyaml", "rich", "typer", "fastapi", "jinja2", "python-multipart", "uvicorn"}
    assert [line for line in LINES if "pip wheel" in line] == [
        'RUN pip wheel --no-cache-dir --wheel-dir /wheels ".[web]"'
    ]
