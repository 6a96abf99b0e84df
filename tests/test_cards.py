from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest
import torch
import transformers

import memplan.cards
from memplan.cards import ModelCard, card_ids, load_card, resolve_model
from memplan.errors import FileFormatError, InvalidValueError, UnavailableError, UnknownNameError
from memplan.model_config import normalise_config

CARDS = Path(__file__).resolve().parent.parent / "model_cards"


def test_every_file_is_a_card() -> None:
    files = sorted(CARDS.iterdir())
    assert len(files) == len(card_ids()) == 130
    for file in files:
        card = ModelCard.model_validate_json(file.read_bytes())
        assert file.name == card.id.replace("/", "--") + ".json"


@pytest.mark.parametrize("card_id", card_ids())
def test_card_is_consistent(card_id: str) -> None:
    card = load_card(card_id)
    assert card.id == card_id
    nested = {**card.config, **card.config.get("text_config", {})}
    assert set(card.fields_count_cannot_prove) <= set(nested)
    assert set(card.of_those_cross_checked) <= set(card.fields_count_cannot_prove)
    assert (card.text_only_parameters is None) == (card.vision_and_projector_parameters is None)
    if card.text_only_parameters and card.vision_and_projector_parameters:
        assert card.text_only_parameters + card.vision_and_projector_parameters == card.parameters
    if card.confidence == "high" and isinstance(card.published_parameters, int) and not card.note:
        # What differs says why: published totals count tied weights twice, buffers, or another head.
        assert card.published_parameters == card.parameters


@pytest.mark.parametrize("card_id", card_ids())
def test_parameters_equal_the_model_class(card_id: str) -> None:
    card = load_card(card_id)
    keys = copy.deepcopy(card.config)
    config = transformers.AutoConfig.for_model(keys.pop("model_type"), **keys)
    with torch.device("meta"):
        model = getattr(transformers, card.model_class)(config)
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    expected = card.parameters
    if card.config["model_type"] in ("t5", "mt5") and not card.config["tie_word_embeddings"]:
        # The class ties lm_head whatever the config says; the checkpoint has its own (see the card's note).
        expected -= card.config["vocab_size"] * card.config["d_model"]
    assert sum(counts.values()) == expected
    saved = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in saved}
    assert sum(buffer.numel() for buffer in buffers.values()) == card.persistent_buffer_elements
    if card.vision_and_projector_parameters is not None:
        parts = ("vision_tower", "multi_modal_projector", "visual")
        outside_text = sum(count for name, count in counts.items() if any(part in name for part in parts))
        assert outside_text == card.vision_and_projector_parameters


def test_card_schema_is_strict() -> None:
    raw = json.loads((CARDS / "openai-community--gpt2.json").read_text())
    for change in ({"surprise": 1}, {"parameters": "124439808"}, {"parameters": 0}, {"confidence": "certain"}):
        with pytest.raises(pydantic.ValidationError):
            ModelCard.model_validate_json(json.dumps({**raw, **change}))


@pytest.mark.parametrize("name", ["mistralai/Mistral-7B-v0.1", "MISTRALAI/mistral-7b-V0.1", " Mistral-7B-v0.1 "])
def test_card_by_id_and_short_name(name: str) -> None:
    model = resolve_model(name)
    assert (model.id, model.name, model.source) == ("mistralai/Mistral-7B-v0.1", "Mistral-7B-v0.1", "card")
    assert model.card is load_card("mistralai/Mistral-7B-v0.1")
    assert model.config == normalise_config(model.card.config)
    assert resolve_model(name) is model


def test_every_id_resolves_in_any_case() -> None:
    for card_id in card_ids():
        assert resolve_model(card_id.upper()).id == card_id


def test_ambiguous_short_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memplan.cards, "_ids_by_folded_name", lambda: {"gpt2": None})
    monkeypatch.setattr(memplan.cards, "card_ids", lambda: ("a/gpt2", "b/GPT2"))
    with pytest.raises(InvalidValueError) as caught:
        resolve_model("GPT2")
    assert str(caught.value) == (
        "model = 'GPT2' is not allowed: a full id where several share a short name: a/gpt2, b/GPT2"
    )


def test_file_directory_and_inline_agree(tmp_path: Path) -> None:
    raw = load_card("Qwen/Qwen2.5-0.5B").config
    file = tmp_path / "config.json"
    file.write_text(json.dumps(raw))
    from_file, from_directory, inline = resolve_model(file), resolve_model(str(tmp_path)), resolve_model(raw)
    card = resolve_model("qwen2.5-0.5b")
    assert from_file.config == from_directory.config == inline.config == card.config
    assert (from_file.source, from_file.id, from_file.card) == ("file", str(file), None)
    assert (inline.source, inline.id, inline.card) == ("inline", "qwen2 (inline config)", None)
    assert from_directory.name == tmp_path.name


def test_card_wins_over_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2", "n_layer": 2}')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "gpt2", "n_layer": 3}')
    monkeypatch.chdir(tmp_path)
    assert resolve_model("gpt2").source == "card"
    assert resolve_model("./gpt2").config["n_layer"] == 2
    assert resolve_model("mine").config["n_layer"] == 3
    with pytest.raises(UnknownNameError):
        resolve_model("mine", allow_paths=False)
    with pytest.raises(UnknownNameError):
        resolve_model("./gpt2", allow_paths=False)
    with pytest.raises(InvalidValueError):
        resolve_model(tmp_path / "gpt2", allow_paths=False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mistralai/Mistral-7B-v0.2",
            "unknown model 'mistralai/Mistral-7B-v0.2'\n"
            "did you mean mistralai/Mistral-7B-v0.3 or mistralai/Mistral-7B-v0.1 or mistralai/Mixtral-8x7B-v0.1?\n"
            "`memplan models` lists all 130 cards\n"
            "or give the path of a config.json, or of a directory that holds one",
        ),
        (
            "llama3",
            "unknown model 'llama3'\n"
            "did you mean meta-llama/Meta-Llama-3-8B or meta-llama/Meta-Llama-3-70B?\n"
            "`memplan models` lists all 130 cards\n"
            "or give the path of a config.json, or of a directory that holds one",
        ),
        (
            "?",
            "unknown model '?'\n"
            "`memplan models` lists all 130 cards\n"
            "or give the path of a config.json, or of a directory that holds one",
        ),
    ],
)
def test_unknown_model(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model(name)
    assert str(caught.value) == message
    assert caught.value.code == "unknown_model"
    assert caught.value.exit_code == 2


def test_unknown_model_from_the_network() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model("/etc/passwd", allow_paths=False)
    assert str(caught.value) == "unknown model '/etc/passwd'\n`memplan models` lists all 130 cards"


def test_long_name_is_cut() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model("x" * 5000)
    assert caught.value.message == "unknown model '" + "x" * 117 + "...'"


@pytest.mark.parametrize("value", ["", "  ", 7, None, ["gpt2"]])
def test_no_model_at_all(value: object) -> None:
    with pytest.raises(InvalidValueError) as caught:
        resolve_model(value)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"model = {value!r} is not allowed: a model id, a path to a config.json, or an object as in a config.json"
    )


def test_path_that_is_not_there() -> None:
    with pytest.raises(FileFormatError) as caught:
        resolve_model("./no/such/config.json")
    assert caught.value.message == "no/such/config.json does not exist"
    with pytest.raises(FileFormatError, match="there is no such user"):
        resolve_model("~no-such-user/config.json")


def test_installation_without_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memplan.cards, "__file__", str(tmp_path / "memplan" / "cards.py"))
    memplan.cards._card_files.cache_clear()
    try:
        with pytest.raises(UnavailableError, match="model cards are missing"):
            memplan.cards._card_files()
    finally:
        memplan.cards._card_files.cache_clear()


def test_cards_inside_the_package_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    directory = tmp_path / "memplan" / "model_cards"
    directory.mkdir(parents=True)
    (directory / "a--b--c.json").write_text("{}")
    monkeypatch.setattr(memplan.cards, "__file__", str(tmp_path / "memplan" / "cards.py"))
    memplan.cards._card_files.cache_clear()
    try:
        assert memplan.cards._card_files() == {"a/b--c": directory / "a--b--c.json"}
    finally:
        memplan.cards._card_files.cache_clear()


def test_one_model_reads_one_card() -> None:
    # A fresh process: the files that Python opens are watched from outside the code under test.
    code = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: event == 'open' and opened.append(str(args[0])))\n"
        "from memplan.cards import resolve_model\n"
        "resolve_model('gpt2')\n"
        "print([name.rsplit('/', 1)[1] for name in opened if 'model_cards' in name])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    root = Path(memplan.cards.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['openai-community--gpt2.json']", "[]"]
