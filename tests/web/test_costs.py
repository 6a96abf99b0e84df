"""What pages and sections cost, in processor time: far from the deadlines that a busy machine would otherwise miss."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from memplan.web.settings import Settings

RECIPE = "model=mistralai/Mistral-7B-v0.1&method=lora&micro_batch_size=1&gpu=rtx-4090"
# Of the deadline. Four such answers at once on a machine with half a core to spare still meet it.
SHARE = 0.125
ANSWERS = (
    "pages.accuracy_html('')",
    "api.accuracy('', 'family', 'both')",
    "pages.method_catalogue_html('')",
    f"pages.answer_html('{RECIPE}', '')",
)
SECTIONS = tuple(f"pages.{name}('{RECIPE}', '')" for name in ("changes_html", "gpus_html", "methods_html"))


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    """Processor time of the first answer to each, in a process that has answered nothing else of the kind."""
    code = f"""
import json, time
import memplan.engine
from memplan.web import tasks as api
from memplan.web.pages import tasks as pages
found = {{}}
for call in {ANSWERS + SECTIONS!r}:
    started = time.process_time()
    assert eval(call).body
    found[call] = time.process_time() - started
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("call", ANSWERS)
def test_an_answer_is_far_from_its_deadline(seconds: dict[str, float], call: str) -> None:
    assert seconds[call] < SHARE * Settings().timeout_seconds


@pytest.mark.parametrize("call", SECTIONS)
def test_a_section_is_far_from_its_deadline(seconds: dict[str, float], call: str) -> None:
    assert seconds[call] < SHARE * Settings().slow_timeout_seconds
