"""Models of types that no family describes: the trace needs none, the estimate says that it has no rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trace_cases import DECODER

import memplan
from memplan.errors import InvalidValueError, UnknownNameError
from memplan.families import model_types
from memplan.model_config import normalise_config
from memplan.recipe import Recipe, Task
from memplan.resolve import Resolved, resolve
from memplan.trace import TraceResult, run_many
from memplan.trace.estimate import spec_of, to_estimate

CODE = {"auto_map": {"AutoConfig": "code.Config"}, "attn_implementation": "some-org/kernel", "_name_or_path": "/etc"}
CONFIGS: dict[str, dict[str, Any]] = {
    "glm": {**DECODER, **CODE, "model_type": "glm", "head_dim": 64, "pad_token_id": 0, "torch_dtype": "bfloat16"},
    "electra": {
        "model_type": "electra", "architectures": ["ElectraForMaskedLM"], "hidden_size": 256, "embedding_size": 128,
        "intermediate_size": 688, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000,
    },
}  # fmt: skip
KEYS: dict[str, dict[str, Any]] = {"glm": {"method": "lora", "target_modules": ["q_proj"], "lora_r": 4}, "electra": {}}


def _resolved(name: str) -> Resolved:
    recipe = Recipe(model=CONFIGS[name], micro_batch_size=2, sequence_length=64, **KEYS[name])
    return resolve(recipe, described_only=False)


def test_they_are_traced_like_any_other() -> None:
    resolved = {name: _resolved(name) for name in CONFIGS}
    assert resolved["electra"].task is Task.MASKED_LM
    traced = dict(zip(CONFIGS, run_many([spec_of(entry) for entry in resolved.values()]), strict=True))
    for name, result in traced.items():
        assert name not in model_types()
        assert isinstance(result, TraceResult), result
        estimate = to_estimate(result, resolved[name])
        assert sum(entry.bytes for entry in estimate.components) == estimate.peak.live_bytes
    glm, electra = traced["glm"], traced["electra"]
    assert isinstance(glm, TraceResult)
    assert isinstance(electra, TraceResult)
    assert glm.parameters["trainable"] == 2 * 4 * (256 + 256)
    # Fused gate_up_proj, biases on q, k and v; two norms a layer and one at the end.
    layer = 2 * 256 * 256 + 2 * 256 * 128 + 256 + 2 * 128 + 3 * 256 * 688 + 2 * 256
    assert glm.parameters["total"] == 2 * layer + 2 * 1000 * 256 + 256 + glm.parameters["trainable"]
    # Embeddings of width 128, projected; the head goes back to 128 and shares the word embeddings.
    layer = 4 * (256 * 256 + 256) + 2 * 256 * 688 + 688 + 256 + 4 * 256
    embeddings = (1000 + 512 + 2 + 2) * 128 + 128 * 256 + 256
    assert electra.parameters["total"] == embeddings + 2 * layer + 2 * 128 + 256 * 128 + 128 + 1000
    assert electra.parameters["trainable"] == electra.parameters["total"]


def test_nothing_that_names_code_or_files_is_kept() -> None:
    config = normalise_config(CONFIGS["glm"], described_only=False)
    assert not {*CODE} & {*config}
    assert (config["model_type"], config["head_dim"], config["dtype"]) == ("glm", 64, "bfloat16")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"some_size": 2**40}, "some_size"),
        ({"text_config": {"n_layers": 5000}}, r"text_config\.n_layers"),
    ],
)
def test_sizes_are_bounded(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidValueError, match=words):
        normalise_config({**CONFIGS["glm"], **change}, described_only=False)


def test_the_estimate_offers_the_trace(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIGS["glm"]))
    for model in (CONFIGS["glm"], str(file)):
        with pytest.raises(UnknownNameError, match=r"no analytic rule; `memplan trace` answers"):
            memplan.estimate(model=model)
