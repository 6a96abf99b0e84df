"""Every cell of the suites, shrunk and run for two real steps on the CPU: what a GPU is asked can be built and trained.

`python -m pytest -m full_matrix tests/measure/test_cells_run.py`; takes minutes, so that CI leaves it out.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from memplan.cards import resolve_model
from memplan.measure.estimate import measured_spec, to_estimate
from memplan.measure.result import MeasureOptions
from memplan.measure.suite import Cell, cells
from memplan.recipe import Recipe
from memplan.resolve import resolve

pytestmark = pytest.mark.full_matrix

_SMALL: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 1024,
    "n_embd": 256, "n_layer": 2, "n_head": 4, "n_inner": 512,
    "d_model": 256, "d_kv": 64, "d_ff": 512, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "ffn_dim": 512, "word_embed_proj_dim": 256, "num_kv_heads": 4,
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "n_routed_experts": 4, "pooler_hidden_size": 256, "embedding_size": 256,
}  # fmt: skip
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
# What a machine may lack, by words of the refusal.
_MISSING = {"torch-optimi": "torch_optimi", "FlashAttention2": "flash_attn"}


def shrunk(cell: Cell) -> Recipe:
    """The cell's recipe on a small model of the same family, with short sequences."""
    keys = dict(cell.keys)
    config = dict(resolve_model(keys["model"]).config)
    if config["model_type"] == "deepseek_v2":  # its heads follow from sizes that depend on each other
        config["num_hidden_layers"] = 2
    else:
        config |= {key: value for key, value in _SMALL.items() if isinstance(config.get(key), int)}
    for key in ("layer_types", "mlp_layer_types"):
        if isinstance(config.get(key), list):
            config[key] = config[key][:2]
    config |= {key: min(config[key], 5) for key in _TOKENS if isinstance(config.get(key), int)}
    keys |= {"model": config, "micro_batch_size": min(keys["micro_batch_size"], 2), "sequence_length": 48}
    if "target_length" in keys:
        keys["target_length"] = 16
    if "adapter_layers" in keys.get("peft", {}):
        keys["peft"] = {**keys["peft"], "adapter_layers": 2}
    return Recipe(**keys)


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell.name)
def test_the_cell_runs(cell: Cell) -> None:
    from memplan.errors import UnavailableError, UnsupportedError
    from memplan.measure.session import Session

    resolved = resolve(shrunk(cell))
    try:
        result = Session(measured_spec(resolved, steps=2, device="cpu"), MeasureOptions(device="cpu")).run()
    except (UnavailableError, UnsupportedError) as error:
        missing = [package for words, package in _MISSING.items() if words in str(error) and not find_spec(package)]
        if not missing:
            raise
        pytest.skip(f"{missing[0]} is not installed")
    assert result.outcome == "ok"
    assert {entry.phase for entry in result.phases} == {"load", "forward", "backward", "optimizer_step"}
    assert result.parameters["trainable"] > 0
    assert result.resident["gradients"] > 0
    answer = to_estimate(result, resolved)
    assert answer.peak.live_bytes == result.top.peak_allocated_bytes
