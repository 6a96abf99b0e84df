"""Metamorphic relations: what must hold between the answers to two related questions, whatever the numbers are.

Bytes are compared at the level `live` unless said otherwise: blocks and segments may fit better when a run grows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memplan
from memplan.estimate import Component, Estimate, Fits, Phase
from memplan.model_state import ModelState

Keys = dict[str, Any]

EXAMPLES = settings(derandomize=True, deadline=None, max_examples=20)
MANY = settings(derandomize=True, deadline=None, max_examples=32)

BASE: Keys = {
    "model_type": "llama",
    "hidden_size": 128,
    "head_dim": 32,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "tie_word_embeddings": False,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CONFIGS = st.builds(
    lambda family, heads, groups, head, ffn, layers, vocab, tied: {
        "model_type": family,
        "hidden_size": 32 * heads,
        "head_dim": head,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // groups,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
    },
    st.sampled_from(["llama", "mistral", "qwen2", "qwen3", "gemma"]),
    st.sampled_from([2, 4, 8]),
    st.sampled_from([1, 2]),
    st.sampled_from([16, 32, 64]),
    st.sampled_from([96, 208, 512]),
    st.integers(1, 4),
    st.sampled_from([97, 512, 1000]),
    st.booleans(),
)
METHODS: list[Keys] = [
    {"method": "full"},
    {"method": "lora", "lora_r": 4},
    {"method": "lora", "lora_r": 4, "target_modules": "all-linear", "lora_dropout": 0.1},
    {"method": "qlora", "lora_r": 4},
]
SETTINGS: list[Keys] = [
    {},
    {"activation_checkpointing": True},
    {"activation_checkpointing": "reentrant"},
    {"attn_implementation": "eager"},
    {"padding": True},
    {"optim": "adamw_torch"},
    {"optim": "sgd"},
    {"gpu": "t4"},
    {"expandable_segments": True},
    {"max_grad_norm": 0},
]
RUNS = st.builds(
    lambda config, method, setting, batch, sequence: {
        "model": config, "micro_batch_size": batch, "sequence_length": sequence, **method, **setting,
    },
    CONFIGS, st.sampled_from(METHODS), st.sampled_from(SETTINGS), st.integers(1, 4), st.sampled_from([16, 32, 48, 96]),
)  # fmt: skip


def estimate(run: Keys, **changes: Any) -> Estimate:
    return memplan.estimate(**{**run, **changes})


def state(run: Keys, **changes: Any) -> ModelState:
    return memplan.model_states(**{**run, **changes})


def live(run: Keys, **changes: Any) -> int:
    return estimate(run, **changes).peak.live_bytes


def states_bytes(found: ModelState) -> int:
    """Everything that stays: parameters as stored, gradients, states."""
    return (
        sum(found.loaded.values())
        + found.gradients_bytes
        + found.master_bytes
        + found.states.device_bytes
        + found.states.paged_bytes
        + found.states.host_bytes
    )


def with_config(run: Keys, **changes: Any) -> Keys:
    return {**run, "model": {**run["model"], **changes}}


# -- never less when something grows ----------------------------------------------------------------------


@MANY
@given(RUNS, st.integers(1, 4))
def test_monotone_in_batch(run: Keys, more: int) -> None:
    assert live(run, micro_batch_size=run["micro_batch_size"] + more) >= live(run)


@MANY
@given(RUNS, st.integers(1, 4))
def test_monotone_in_sequence(run: Keys, more: int) -> None:
    # In steps of 16: a kernel may pad a mask at one length and not at the next.
    assert live(run, sequence_length=run["sequence_length"] + 16 * more) >= live(run)


@MANY
@given(RUNS, st.integers(1, 3))
def test_monotone_in_layers(run: Keys, more: int) -> None:
    assert live(with_config(run, num_hidden_layers=run["model"]["num_hidden_layers"] + more)) >= live(run)


@EXAMPLES
@given(RUNS, st.sampled_from([64, 128]))
def test_monotone_in_hidden_size(run: Keys, more: int) -> None:
    assert live(with_config(run, hidden_size=run["model"]["hidden_size"] + more)) >= live(run)


@EXAMPLES
@given(RUNS, st.sampled_from([64, 300]))
def test_monotone_in_ffn(run: Keys, more: int) -> None:
    assert live(with_config(run, intermediate_size=run["model"]["intermediate_size"] + more)) >= live(run)


@EXAMPLES
@given(RUNS, st.sampled_from([1, 100, 5000]))
def test_monotone_in_vocabulary(run: Keys, more: int) -> None:
    assert live(with_config(run, vocab_size=run["model"]["vocab_size"] + more)) >= live(run)


@EXAMPLES
@given(RUNS)
def test_monotone_in_heads(run: Keys) -> None:
    heads, kv = run["model"]["num_attention_heads"], run["model"]["num_key_value_heads"]
    assert live(with_config(run, num_attention_heads=2 * heads, num_key_value_heads=2 * kv)) >= live(run)


@EXAMPLES
@given(RUNS)
def test_grouped_heads_are_never_more(run: Keys) -> None:
    shared, own = (with_config(run, num_key_value_heads=kv) for kv in (1, run["model"]["num_attention_heads"]))
    assert states_bytes(state(shared)) <= states_bytes(state(own))


@EXAMPLES
@given(CONFIGS, st.sampled_from(["lora", "qlora", "dora", "loha", "hra"]), st.integers(1, 15), st.integers(1, 15))
def test_monotone_in_rank(config: Keys, method: str, rank: int, more: int) -> None:
    run = {"model": config, "method": method, "target_modules": ["q_proj"]}
    if method in ("loha", "hra"):
        run["peft"] = {"target_modules": run.pop("target_modules")}
    small, large = (state({**run, "peft": {**run.get("peft", {}), "r": r}}) for r in (rank, rank + more))
    assert small.parameters.trainable < large.parameters.trainable
    assert states_bytes(small) <= states_bytes(large)


@EXAMPLES
@given(CONFIGS, st.integers(1, 15))
def test_lora_parameters_are_linear_in_the_rank(config: Keys, rank: int) -> None:
    run = {"model": config, "method": "lora", "target_modules": "all-linear"}
    one = state(run, lora_r=1).parameters.trainable
    assert state(run, lora_r=rank).parameters.trainable == rank * one


@EXAMPLES
@given(RUNS, st.permutations(PROJECTIONS), st.integers(1, 6))
def test_monotone_in_the_number_of_targets(run: Keys, order: list[str], count: int) -> None:
    if run["method"] == "full":
        run = {**run, "method": "lora", "lora_r": 4}
    few, more = (live(run, target_modules=sorted(order[:number])) for number in (count, count + 1))
    assert few <= more


@EXAMPLES
@given(RUNS, st.integers(1, 500))
def test_monotone_in_added_tokens(run: Keys, added: int) -> None:
    assert live(run, num_added_tokens=added) >= live(run)
    assert live(run, num_added_tokens=added) == live(with_config(run, vocab_size=run["model"]["vocab_size"] + added))


@EXAMPLES
@given(CONFIGS, st.integers(1, 6))
def test_monotone_in_experts_all_of_which_count(config: Keys, more: int) -> None:
    run = {"model": {**config, "model_type": "mixtral", "num_local_experts": 2, "num_experts_per_tok": 1}}
    grown = with_config(run, num_local_experts=2 + more)
    per_expert = 3 * config["hidden_size"] * config["intermediate_size"] + config["hidden_size"]
    difference = state(grown).parameters.total - state(run).parameters.total
    assert difference == more * per_expert * config["num_hidden_layers"]
    assert states_bytes(state(grown)) > states_bytes(state(run))


@EXAMPLES
@given(RUNS)
def test_padding_and_kept_outputs_are_never_less(run: Keys) -> None:
    assert live(run, keep_outputs=True) >= live(run, keep_outputs=False)
    # SDPA takes another kernel for a masked batch, which may save less than flash attention does.
    eager = {**run, "attn_implementation": "eager"}
    assert live(eager, padding=True) >= live(eager, padding=False)


# -- orderings --------------------------------------------------------------------------------------------


@MANY
@given(CONFIGS)
def test_wider_dtypes_are_more(config: Keys) -> None:
    half = {"model": config, "dtype": "bfloat16", "sequence_length": 32}
    single = {"model": config, "dtype": "float32", "sequence_length": 32}
    assert states_bytes(state(single)) > states_bytes(state(half))
    assert live(single) >= live(half)
    assert states_bytes(state(half)) == states_bytes(state({**half, "dtype": "float16"}))


@MANY
@given(CONFIGS, st.sampled_from(["adamw_torch", "adamw_8bit", "sgd"]))
def test_full_is_more_than_lora_is_more_than_qlora(config: Keys, optim: str) -> None:
    """States; the largest rank keeps adapters below the weights they stand beside."""
    run = {"model": {**config, "hidden_size": 512, "intermediate_size": 1024}, "optim": optim, "dtype": "bfloat16"}
    full, lora, qlora = (
        states_bytes(state(run, **keys))
        for keys in (
            {},
            {"method": "lora", "lora_r": 2, "target_modules": "all-linear"},
            {"method": "qlora", "lora_r": 2, "prepare_model_for_kbit_training": False},
        )
    )
    assert full >= lora >= qlora


@MANY
@given(CONFIGS)
def test_optimizer_states_in_their_order(config: Keys) -> None:
    run = {"model": {**config, "hidden_size": 512}, "dtype": "float32"}
    order = ["adamw_torch", "adamw_8bit", "sgd"]
    adam, eight, sgd = (state(run, optim=optim).states.device_bytes for optim in order)
    assert adam >= eight >= sgd == 0
    lion = state(run, optim="lion_8bit").states.device_bytes
    assert lion <= eight
    momentum = state(run, optim="sgd", optim_args={"momentum": 0.9}).states.device_bytes
    assert 0 < momentum < adam
    assert state(run, optim="adafactor").states.device_bytes < adam


@MANY
@given(RUNS)
def test_eager_attention_is_never_less_than_sdpa(run: Keys) -> None:
    """Where the scores of a head [S, S] are larger than what a kernel keeps beside its result.

    Of one sequence with one key/value head, eager attention copies no head, where the unfused kernel still does.
    """
    batch = max(run["micro_batch_size"], 2)
    run = {key: value for key, value in run.items() if key != "padding"} | {
        "sequence_length": 256,
        "micro_batch_size": batch,
    }
    eager, sdpa = (live(run, attn_implementation=kind, gpu="a100-40gb") for kind in ("eager", "sdpa"))
    assert eager >= sdpa


@MANY
@given(RUNS)
def test_fused_steps_are_never_more_than_foreach(run: Keys) -> None:
    run = {key: value for key, value in run.items() if key != "optim"}
    fused, foreach = (estimate(run, optim=optim) for optim in ("adamw_torch_fused", "adamw_torch"))
    assert fused.peak.live_bytes <= foreach.peak.live_bytes + 512 * len(state(run).stored)
    for mine, theirs in zip(fused.timeline, foreach.timeline, strict=True):
        if mine.phase.value == "backward" and mine.step == 1:
            assert mine == theirs


@MANY
@given(RUNS, st.sampled_from([True, "reentrant"]))
def test_checkpointing_holds_less_when_backward_begins(run: Keys, mode: object) -> None:
    """After forward; its peak in backward may lie higher on a model of few layers, where one layer is recomputed."""
    run = {**run, "model": {**run["model"], "num_hidden_layers": 4}}
    on, off = (estimate(run, activation_checkpointing=value) for value in (mode, False))
    assert on.timeline[4].phase == off.timeline[4].phase == Phase.FORWARD
    assert on.timeline[4].end_bytes <= off.timeline[4].end_bytes


@EXAMPLES
@given(CONFIGS, st.sampled_from(METHODS))
def test_checkpointing_is_never_more_on_deep_models(config: Keys, method: Keys) -> None:
    run = {
        "model": {**config, "num_hidden_layers": 12}, "micro_batch_size": 4, "sequence_length": 128,
        "dtype": "bfloat16", **method,
    }  # fmt: skip
    assert live(run, activation_checkpointing=True) <= live(run, activation_checkpointing=False)


@EXAMPLES
@given(CONFIGS)
def test_freezing_is_never_more(config: Keys) -> None:
    run = {"model": {**config, "tie_word_embeddings": False}, "sequence_length": 32}
    everything, head, last = (
        estimate(run, **keys) for keys in ({}, {"trainable": ["*lm_head*", "*norm*"]}, {"trainable": ["*lm_head*"]})
    )
    assert everything.peak.live_bytes >= head.peak.live_bytes >= last.peak.live_bytes
    assert everything.parameters.total == head.parameters.total == last.parameters.total
    assert everything.parameters.trainable > head.parameters.trainable > last.parameters.trainable


@EXAMPLES
@given(CONFIGS, st.integers(1, 8))
def test_dora_adds_its_magnitudes_to_lora(config: Keys, rank: int) -> None:
    run = {"model": config, "lora_r": rank, "target_modules": ["q_proj", "down_proj"]}
    lora, dora = (state(run, method=method) for method in ("lora", "dora"))
    outputs = config["num_attention_heads"] * config["head_dim"] + config["hidden_size"]
    assert dora.parameters.trainable - lora.parameters.trainable == outputs * config["num_hidden_layers"]
    assert states_bytes(dora) > states_bytes(lora)


@EXAMPLES
@given(CONFIGS)
def test_precision_policies_in_their_order(config: Keys) -> None:
    sizes = {
        precision: states_bytes(state({"model": config, "precision": precision}))
        for precision in ("pure", "fp32", "amp", "master", "master-fp32-grads")
    }
    assert sizes["fp32"] == sizes["amp"]
    assert sizes["pure"] < sizes["master"] < sizes["master-fp32-grads"]
    assert sizes["pure"] < sizes["fp32"]


@EXAMPLES
@given(CONFIGS)
def test_double_quantization_stores_less_for_real_sizes(config: Keys) -> None:
    run = {"model": {**config, "hidden_size": 1024, "intermediate_size": 4096}, "method": "qlora"}
    nested, plain = (sum(state(run, bnb_4bit_use_double_quant=value).loaded.values()) for value in (True, False))
    eight = sum(state(run, load_in_8bit=True).loaded.values())
    none = sum(state({**run, "method": "lora", "dtype": "bfloat16"}).loaded.values())
    assert nested < plain < eight < none


# -- equalities -------------------------------------------------------------------------------------------


@MANY
@given(RUNS)
def test_components_sum_to_the_peak_and_lines_to_the_components(run: Keys) -> None:
    found = estimate(run)
    assert sum(entry.bytes for entry in found.components) == found.peak.live_bytes
    for component in Component:
        lines = sum(line.bytes for line in found.lines if line.component is component)
        assert lines == found.component_bytes(component)


@MANY
@given(RUNS)
def test_levels_in_their_order(run: Keys) -> None:
    peak = estimate(run).peak
    assert peak.live_bytes <= peak.allocated_bytes <= peak.reserved_bytes <= peak.device_bytes
    expandable = estimate(run, expandable_segments=True).peak
    assert expandable.allocated_bytes == expandable.live_bytes == peak.live_bytes


@EXAMPLES
@given(RUNS, st.integers(1, 3))
def test_every_layer_costs_the_same(run: Keys, layers: int) -> None:
    """Two layers minus one layer is three minus two, in states and in what backward finds."""
    sizes = []
    for count in (layers, layers + 1, layers + 2):
        grown = with_config(run, num_hidden_layers=count + 1)
        sizes.append((states_bytes(state(grown)), estimate(grown).timeline[4].end_bytes))
    differences = [tuple(b - a for a, b in zip(low, high, strict=True)) for low, high in pairwise(sizes)]
    assert differences[0] == differences[1]


@EXAMPLES
@given(RUNS)
def test_the_peak_without_checkpointing_is_linear_in_layers(run: Keys) -> None:
    run = {**run, "activation_checkpointing": False, "optim": "sgd", "max_grad_norm": 0}
    at = {}
    peaks = []
    for count in (4, 5, 6):
        found = estimate(with_config(run, num_hidden_layers=count))
        peaks.append(found.peak.live_bytes)
        at[count] = (found.peak.step, found.peak.phase, found.peak.at)
    if at[4] == at[5] == at[6]:
        assert peaks[2] - peaks[1] == peaks[1] - peaks[0]


@EXAMPLES
@given(RUNS, st.randoms(use_true_random=False))
def test_the_order_of_keys_makes_no_difference(run: Keys, random: Any) -> None:
    def shuffled(keys: Keys) -> Keys:
        names = list(keys)
        random.shuffle(names)
        return {name: shuffled(keys[name]) if isinstance(keys[name], dict) else keys[name] for name in names}

    assert without_model(estimate(shuffled(run))) == without_model(estimate(run))


def without_model(found: Estimate) -> Keys:
    """The JSON without the recipe, whose order is the user's."""
    answer: Keys = json.loads(found.to_json())
    del answer["recipe"], answer["recipe_sources"]
    return answer


@MANY
@given(RUNS)
def test_every_default_made_explicit_changes_nothing(run: Keys) -> None:
    found = estimate(run)
    again = memplan.estimate(**found.recipe)
    assert again.recipe == found.recipe
    assert set(again.recipe_sources.values()) == {"user"}
    assert without_model(again) == without_model(found)


@EXAMPLES
@given(RUNS)
def test_unnamed_defaults_of_a_config_may_be_written_out(run: Keys) -> None:
    written = with_config(run, rms_norm_eps=1e-6, hidden_act="silu", use_cache=True, initializer_range=0.02)
    if run["model"]["model_type"] == "gemma":
        written["model"].pop("hidden_act")
    assert without_model(estimate(written)) == without_model(estimate(run))


def test_the_name_of_a_model_makes_no_difference(tmp_path: Any) -> None:
    from memplan.cards import load_card

    config = load_card("HuggingFaceTB/SmolLM2-135M").config
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_id, by_short, by_path, inline = (
        without_model(estimate({"model": model, "method": "lora", "sequence_length": 64}))
        for model in ("HuggingFaceTB/SmolLM2-135M", "smollm2-135m", str(tmp_path), config)
    )
    assert by_id == by_short
    assert {**by_path, "assumptions": []} == {**inline, "assumptions": []} == {**by_id, "assumptions": []}


@EXAMPLES
@given(RUNS, st.sampled_from([2, 4]))
def test_batch_and_accumulation_may_be_swapped_without_touching_states(run: Keys, factor: int) -> None:
    large = estimate(run, micro_batch_size=4 * factor, gradient_accumulation_steps=1)
    small = estimate(run, micro_batch_size=4, gradient_accumulation_steps=factor)
    assert large.parameters == small.parameters
    assert large.bytes_per_parameter == small.bytes_per_parameter
    for component in (Component.WEIGHTS, Component.ADAPTERS, Component.QUANTIZATION_STATE):
        assert large.component_bytes(component) == small.component_bytes(component)


@EXAMPLES
@given(CONFIGS)
def test_tying_saves_one_embedding(config: Keys) -> None:
    tied, untied = ({"model": {**config, "tie_word_embeddings": value}} for value in (True, False))
    saved = state(untied).parameters.total - state(tied).parameters.total
    assert saved == config["vocab_size"] * config["hidden_size"]
    assert live(tied, sequence_length=32) <= live(untied, sequence_length=32)
    assert state({"model": config}, tie_word_embeddings=True).parameters == state(tied).parameters


@EXAMPLES
@given(RUNS)
def test_states_do_not_depend_on_batch_sequence_attention_or_gpu(run: Keys) -> None:
    expected = states_bytes(state(run))
    for changes in (
        {"micro_batch_size": 7}, {"sequence_length": 999}, {"attn_implementation": "eager"}, {"padding": True},
        {"activation_checkpointing": True}, {"expandable_segments": True}, {"max_grad_norm": 0},
    ):  # fmt: skip
        assert states_bytes(state(run, **changes)) == expected


@EXAMPLES
@given(RUNS)
def test_one_gpu_is_the_default_and_a_gpu_moves_no_model_state(run: Keys) -> None:
    assert without_model(estimate(run, gpus=1)) == without_model(estimate(run))
    named = estimate({**run, "gpu": "h100-sxm-80gb", "autocast_dtype": None})
    assert named.parameters == estimate(run).parameters


@EXAMPLES
@given(CONFIGS, st.sampled_from(["sgd", "adamw_torch_fused", "adamw_torch"]))
def test_gradients_and_states_follow_the_trained_parameters(config: Keys, optim: str) -> None:
    full = state({"model": config, "dtype": "float32", "optim": optim})
    elements = full.parameters.trainable
    assert elements == full.parameters.total
    blocks = 512 * len(full.stored)
    assert 0 <= full.gradients_bytes - 4 * elements < blocks
    if optim != "sgd":
        assert 0 <= full.states.device_bytes - 8 * elements < 3 * blocks


@EXAMPLES
@given(CONFIGS, st.integers(1, 8))
def test_an_adapter_leaves_the_base_alone(config: Keys, rank: int) -> None:
    base = state({"model": config, "dtype": "bfloat16"})
    lora = state({"model": config, "dtype": "bfloat16", "method": "lora", "lora_r": rank})
    assert lora.loaded[Component.WEIGHTS] == base.loaded[Component.WEIGHTS]
    assert lora.parameters.total - lora.parameters.trainable == base.parameters.total


@EXAMPLES
@given(RUNS)
def test_steps_after_the_first_are_never_lower_in_forward(run: Keys) -> None:
    """States and workspaces are there from the second step on."""
    timeline = {(point.step, point.phase.value): point.peak_bytes for point in estimate(run).timeline}
    for phase in ("forward", "backward"):
        assert timeline[2, phase] >= timeline[1, phase]


# -- verdicts ---------------------------------------------------------------------------------------------


@EXAMPLES
@given(RUNS, st.sampled_from([4, 16]))
def test_a_larger_batch_never_fits_better(run: Keys, factor: int) -> None:
    order = [Fits.FITS, Fits.UNCERTAIN, Fits.DOES_NOT_FIT]
    small, large = (
        estimate(run, gpu="rtx-3060-12gb", micro_batch_size=run["micro_batch_size"] * times) for times in (1, factor)
    )
    if large.peak.reserved_bytes >= small.peak.reserved_bytes:
        assert order.index(large.verdict().fits) >= order.index(small.verdict().fits)


@EXAMPLES
@given(RUNS)
def test_a_larger_card_of_the_same_kind_never_fits_worse(run: Keys) -> None:
    order = [Fits.FITS, Fits.UNCERTAIN, Fits.DOES_NOT_FIT]
    found = estimate(run, gpu="a100-40gb", micro_batch_size=64)
    assert order.index(found.verdict("a100-80gb").fits) <= order.index(found.verdict("a100-40gb").fits)


# -- determinism ------------------------------------------------------------------------------------------


@MANY
@given(RUNS)
def test_the_same_question_twice_is_byte_identical(run: Keys) -> None:
    assert estimate(run).to_json() == estimate(run).to_json()


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_nothing_depends_on_the_process(method: str) -> None:
    """Neither on hash seeds, time zones and locales, nor on what was asked before."""
    run = {"model": BASE, "method": method, "sequence_length": 32, "gpu": "t4"}
    code = f"import memplan\nprint(memplan.estimate(**{run!r}).to_json())"
    answers = set()
    for seed, zone, locale in (("0", "UTC", "C"), ("1", "Asia/Kathmandu", "C.UTF-8")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale, "CUDA_VISIBLE_DEVICES": seed}
        result = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=environment
        )
        answers.add(result.stdout.strip())
    assert answers == {estimate(run).to_json()}


RELATIONS: list[Callable[..., None]] = [
    value for name, value in list(globals().items()) if name.startswith("test_") and callable(value)
]


def test_there_are_many_relations() -> None:
    assert len(RELATIONS) >= 40
