"""What a family's forward pass saves and needs, against the traced step of the real model."""

from __future__ import annotations

from typing import Any

import pytest

from memplan.families import Head, family_of
from memplan.recipe import Task
from memplan.step.settings import StepSettings
from memplan.trace.result import TraceResult
from memplan.trace.runner import run_many
from memplan.trace.spec import TraceSpec
from tests.families.recordings import record_config

BATCH, SEQUENCE = 2, 64
GPT = {"n_embd": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1000, "n_positions": 128}
BERT = {
    "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 1024, "vocab_size": 1000,
}  # fmt: skip
DISENTANGLED = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
    "position_buckets": 32, "position_biased_input": False,
}  # fmt: skip
BART = {
    "d_model": 256, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 1024, "decoder_ffn_dim": 1024, "vocab_size": 1000,
}  # fmt: skip
T5 = {
    "d_model": 256, "d_kv": 64, "d_ff": 1024, "num_heads": 4, "vocab_size": 1000, "num_layers": 2,
    "decoder_start_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
# What is left out of each description are index tensors of a few kilobytes; these models are so small that they show.
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "gpt2": ({"model_type": "gpt2", **GPT}, "sdpa"),
    "gpt_bigcode": ({"model_type": "gpt_bigcode", **GPT}, "sdpa"),
    "gpt_neox": ({"model_type": "gpt_neox", **BERT}, "sdpa"),
    "gptj": ({"model_type": "gptj", **GPT, "rotary_dim": 32}, "eager"),
    "opt": ({"model_type": "opt", **BERT, "ffn_dim": 1024, "word_embed_proj_dim": 256}, "sdpa"),
    "bloom": ({"model_type": "bloom", "hidden_size": 256, "n_layer": 2, "n_head": 4, "vocab_size": 1000}, "eager"),
    "falcon": ({"model_type": "falcon", **BERT}, "sdpa"),
    "bert": ({"model_type": "bert", **BERT}, "sdpa"),
    "roberta": ({"model_type": "roberta", **BERT}, "sdpa"),
    "distilbert": (
        {"model_type": "distilbert", "dim": 256, "n_layers": 2, "n_heads": 4, "hidden_dim": 1024, "vocab_size": 1000},
        "sdpa",
    ),
    "deberta-v2": ({"model_type": "deberta-v2", **BERT, **DISENTANGLED}, "eager"),
    "modernbert": ({"model_type": "modernbert", **BERT, "pad_token_id": 0}, "sdpa"),
    "t5": ({"model_type": "t5", **T5}, "sdpa"),
    "bart": ({"model_type": "bart", **BART}, "sdpa"),
}


def _usual_task(config: dict[str, Any]) -> Task:
    return family_of(config["model_type"]).tasks[0]


@pytest.fixture(scope="module")
def traces() -> dict[str, TraceResult]:
    specs = [
        TraceSpec(
            model_config=config, task=str(_usual_task(config)), batch=BATCH, sequence=SEQUENCE, num_steps=1,
            attn_implementation=attention,
        )
        for config, attention in CASES.values()
    ]  # fmt: skip
    results = run_many(specs)
    assert all(isinstance(result, TraceResult) for result in results), results
    return {name: result for name, result in zip(CASES, results, strict=True) if isinstance(result, TraceResult)}


def _traced(result: TraceResult) -> tuple[int, int]:
    """Bytes of the forward pass at its peak and at its end, cuBLAS' workspace left out."""
    live = peak = 0
    for event in result.walk():
        if event.phase == "backward":
            break
        if event.phase == "forward" and "cublas" not in event.storage.op:
            live += event.storage.block_bytes if event.alloc else -event.storage.block_bytes
            peak = max(peak, live)
    return peak, live


def _recorded(name: str) -> tuple[int, int]:
    config, attention = CASES[name]
    settings = StepSettings(batch=BATCH, sequence=SEQUENCE, attn_implementation=attention, use_cache=True)
    recording = record_config(config, Head(_usual_task(config)), settings, fold=False)
    live = peak = 0
    for segment in recording.segments:
        if segment.phase == "forward":
            for event in segment.events:
                size = recording.infos[event if event >= 0 else ~event].size_bytes
                live += size if event >= 0 else -size
                peak = max(peak, live)
    return peak, live


@pytest.mark.parametrize("name", CASES)
def test_forward_pass_is_that_of_the_real_model(name: str, traces: dict[str, TraceResult]) -> None:
    real_peak, real_end = _traced(traces[name])
    peak, end = _recorded(name)
    assert peak == pytest.approx(real_peak, rel=0.002)
    assert end == pytest.approx(real_end, rel=0.002)
