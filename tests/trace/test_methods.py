"""Every PEFT method traces, and trains as many parameters as PEFT's own model on the CPU."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch

from memplan.errors import UnavailableError
from memplan.trace import TraceResult, TraceSpec, builder, coverage_cases, run, run_many
from memplan.trace.methods import build_peft_config

NEEDS_SKLEARN = {"AdaMSS"}
METHODS = {
    label: peft
    for label, peft in coverage_cases.METHODS.items()
    if label not in NEEDS_SKLEARN or importlib.util.find_spec("sklearn")
}


def _spec(peft: dict[str, Any]) -> TraceSpec:
    return TraceSpec(model_config=coverage_cases.LLAMA, peft=peft, batch=2, sequence=64)


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    return dict(zip(METHODS, run_many([_spec(peft) for peft in METHODS.values()]), strict=True))


@pytest.mark.parametrize("label", METHODS)
@pytest.mark.filterwarnings("ignore")
def test_traces_and_counts_like_peft(label: str, answers: dict[str, Any]) -> None:
    import peft

    answer = answers[label]
    assert isinstance(answer, TraceResult), answer
    spec = _spec(METHODS[label])
    torch.manual_seed(0)
    model: Any = builder.build_on_meta(spec, builder.build_config(spec))
    for _ in builder.load(model, torch.device("cpu"), None):
        pass
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.normal_(0, 0.02)
    real = peft.get_peft_model(model, build_peft_config(spec))
    trainable = sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert answer.parameters["trainable"] == trainable
    # Adam keeps two states; adapters that copy base parameters stay in bfloat16.
    assert answer.phase(2, "optimizer_step").end_components["optimizer_states"] >= 4 * trainable
    assert answer.phase(2, "backward").peak_bytes > answer.phase(2, "optimizer_step").end_bytes


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is not None, reason="scikit-learn is installed")
def test_a_package_that_a_method_asks_for_is_named() -> None:
    with pytest.raises(UnavailableError, match="applying ADAMSS: ImportError: scikit-learn is required") as caught:
        run(_spec(coverage_cases.METHODS["AdaMSS"]))
    assert (caught.value.hint, caught.value.exit_code) == ("pip install scikit-learn", 4)
