"""Running the command line in process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from memplan.cli.app import app

MISTRAL = ("--model", "mistralai/Mistral-7B-v0.1")


@dataclass(frozen=True)
class Outcome:
    """What a command line left behind."""

    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run() -> Run:
    """`run("estimate", "--model", ...)`; an exception that the application does not turn into a message is raised."""

    def call(*arguments: str) -> Outcome:
        result = CliRunner().invoke(app, list(arguments))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return call
