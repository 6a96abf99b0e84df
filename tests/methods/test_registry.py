from __future__ import annotations

import pytest
from peft import PeftType

from memplan.errors import InputError, UnknownNameError
from memplan.methods import canonical_method, get_method, list_methods
from memplan.methods.dispatch import _OTHERS, NOT_COVERED, TUNERS


def test_every_peft_type_has_a_method_and_code_or_a_reason() -> None:
    types = {str(entry.value) for entry in PeftType}
    assert {method.peft_type for method in list_methods() if method.peft_type} == types
    assert TUNERS.keys() | _OTHERS.keys() | NOT_COVERED.keys() == types
    assert not NOT_COVERED.keys() & (TUNERS.keys() | _OTHERS.keys())


def test_names_and_aliases_are_one_a_method() -> None:
    names = [name for method in list_methods() for name in (method.name, *method.aliases)]
    assert len(names) == len(set(names))
    assert all(method.description and "\n" not in method.description for method in list_methods())


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("full", "full"),
        ("pretrain", "full"),
        ("pre-training", "full"),
        ("Full Fine-Tuning", "full"),
        ("LoRA", "lora"),
        ("QLoRA", "qlora"),
        ("prompt-tuning", "prompt_tuning"),
        ("p_tuning", "p_tuning"),
        ("Prefix Tuning", "prefix_tuning"),
        ("(IA)3", "ia3"),
        ("bone", "miss"),
        ("AdaLoRA", "adalora"),
        ("multitask-prompt-tuning", "multitask_prompt_tuning"),
    ],
)
def test_canonical_method(name: str, canonical: str) -> None:
    assert canonical_method(name) == canonical
    assert get_method(name).name == canonical


def test_without_a_name_the_adapter_config_decides() -> None:
    assert canonical_method(None) == "full"
    assert canonical_method(None, {}) == "full"
    assert canonical_method(None, {"r": 8}) == "lora"
    assert canonical_method(None, {"peft_type": "LOHA"}) == "loha"
    assert canonical_method(None, {"peft_type": "lora", "use_dora": True}) == "lora"
    assert canonical_method("dora", {"peft_type": "LORA"}) == "dora"


def test_unknown_names_say_what_was_meant() -> None:
    with pytest.raises(UnknownNameError, match="did you mean lora") as caught:
        canonical_method("loar")
    assert caught.value.code == "unknown_method"
    assert "prefix_tuning" in caught.value.hint
    with pytest.raises(UnknownNameError, match="unknown peft_type 'LORRA'"):
        canonical_method(None, {"peft_type": "LORRA"})


@pytest.mark.parametrize("name", ["loha", "full", "bitfit"])
def test_name_and_peft_type_must_agree(name: str) -> None:
    with pytest.raises(InputError, match="disagree"):
        canonical_method(name, {"peft_type": "LORA"})
