"""What a budget file may say, and how each mistake is answered: file, line, what is allowed, what was meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.budget.config import CHECK_KEYS, SHARED_KEYS, TOP_KEYS, Level, OnUncertain, Severity, specs_of
from memplan.budget.find import find_config, is_config, parse_config_text, table_of
from memplan.budget.schema import config_schema, schema_text
from memplan.documents import Document
from memplan.errors import InputError, MemplanError
from memplan.recipe import Recipe

RUN = 'recipe = { model = "openai-community/gpt2" }'


def parsed(text: str, name: str = "memplan.toml") -> Any:
    document, at = table_of(parse_config_text(text, name))
    return specs_of(document, at)


def test_defaults_fill_what_a_check_leaves_open() -> None:
    first, second = parsed(
        'schema = 1\n[defaults]\ngpu = "h100"\non_uncertain = "fail"\noverride = { gpus = 1, padding = true }\n'
        f'[[check]]\nname = "a"\n{RUN}\n'
        f'[[check]]\nname = "b"\n{RUN}\ngpu = "t4"\nlevel = "reserved"\nseverity = "warn"\nbudget = "8 GiB"\n'
        'on_uncertain = "pass"\nheadroom = "auto"\nmax_increase = "+1 GiB"\noverride = { padding = false }\n'
    )
    assert (first.gpu, first.is_default_gpu, first.on_uncertain) == ("h100", True, OnUncertain.FAIL)
    assert (first.level, first.severity, first.headroom, first.budget_bytes) == (
        Level.DEVICE,
        Severity.ERROR,
        None,
        None,
    )
    assert (second.gpu, second.is_default_gpu, second.on_uncertain) == ("t4", False, OnUncertain.PASS)
    assert (second.level, second.severity, second.budget_bytes) == (Level.RESERVED, Severity.WARN, 8 * 2**30)
    assert second.override == {"gpus": 1, "padding": False}
    assert second.max_increase is not None
    assert second.max_increase.of(0) == 2**30
    assert (first.places["gpu"], second.places["budget"], second.place) == (
        "memplan.toml:3", "memplan.toml:15", "memplan.toml:9",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (f'[[check]]\nname = "a"\n{RUN}', "schema is missing", "schema = 1"),
        (f'schema = 2\n[[check]]\nname = "a"\n{RUN}', "memplan.toml:1: schema = 2 is not allowed", ""),
        (f'schema = true\n[[check]]\nname = "a"\n{RUN}', "schema = True is not allowed", ""),
        ("schema = 1", "there is no [[check]]", ""),
        ("schema = 1\ncheck = 3", "there is no [[check]]", ""),
        (f'schema = 1\nchecks = 1\n[[check]]\nname = "a"\n{RUN}', "memplan.toml:2: unknown key 'checks'", "mean check?"),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nbudgte = "1 GiB"', "memplan.toml:5: unknown key 'budgte' in [[check]]",
         "did you mean budget?"),
        ('schema = 1\n[defaults]\nname = "a"\n[[check]]', "memplan.toml:3: unknown key 'name' in [defaults]", ""),
        (f"schema = 1\n[[check]]\n{RUN}", "memplan.toml:2: a [[check]] has no name", ""),
        (f'schema = 1\n[[check]]\nname = ""\n{RUN}', "memplan.toml:3: name = '' is not allowed", ""),
        (f'schema = 1\n[[check]]\nname = "a\\u0007"\n{RUN}', "without control characters", ""),
        ('schema = 1\n[[check]]\nname = "a"', "memplan.toml:2: the check 'a' has nothing to estimate", "give one of"),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nconfig = "x.yaml"', "recipe and config to estimate", ""),
        ('schema = 1\n[[check]]\nname = "a"\nconfig = []', "memplan.toml:4: config = [] is not allowed", ""),
        ('schema = 1\n[[check]]\nname = "a"\nrecipe_file = ["a"]', "memplan.toml:4: recipe_file", ""),
        ('schema = 1\n[[check]]\nname = "a"\nrecipe = "a.yaml"', "memplan.toml:4: recipe = 'a.yaml' is not allowed", ""),
        ('schema = 1\n[[check]]\nname = "a"\nconfig = ["a", "b"]\nformat = "trl"', "memplan.toml:5: format", ""),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nformat = "trl"', "memplan.toml:5: format", ""),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nbudget = "72"', "memplan.toml:5: budget = '72' is not allowed", "72 GiB"),
        (f'schema = 1\n[defaults]\nbudget = 72\n[[check]]\nname = "a"\n{RUN}', "memplan.toml:3: budget = 72", '"72 GB"'),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nheadroom = "wide"', "memplan.toml:5: headroom = 'wide'", ""),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nlevel = "vram"', "memplan.toml:5: unknown level 'vram'", "allocated"),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\nseverity = "err"', "unknown severity 'err'", "did you mean error?"),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\non_uncertain = 1', "unknown on_uncertain '1'", "fail, pass, warn"),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\ngpu = 4090', "memplan.toml:5: gpu = 4090", ""),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\noverride = 1', "memplan.toml:5: override = 1", ""),
        (f'schema = 1\n[[check]]\nname = "a"\n{RUN}\n[[check]]\nname = "a"\n{RUN}', "toml:6: the name 'a' is taken", ""),
    ],
)  # fmt: skip
def test_mistakes(text: str, message: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        parsed(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 2


def test_lines_in_pyproject() -> None:
    text = f'[project]\nname = "x"\n\n[tool.memplan]\nschema = 1\n\n[[tool.memplan.check]]\nname = "a"\n{RUN}\nbudget = "1"\n'
    with pytest.raises(InputError, match=r"^pyproject.toml:10: budget"):
        parsed(text, "pyproject.toml")
    with pytest.raises(InputError, match=r"has no \[tool.memplan\]"):
        parsed('[project]\nname = "x"\n', "pyproject.toml")


def test_places_without_lines() -> None:
    with pytest.raises(InputError, match=r"^request: check\[0\].budget: budget = 1 is not allowed"):
        specs_of(Document("request", "json", {"schema": 1, "check": [{"name": "a", "recipe": {}, "budget": 1}]}))


def test_found_upwards_to_the_top_of_the_repository(tmp_path: Path) -> None:
    inner = tmp_path / "repo" / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "memplan.toml").write_text("schema = 1")
    (tmp_path / "repo" / ".git").mkdir()
    with pytest.raises(InputError, match=r"no memplan.toml") as caught:
        find_config(inner)
    assert "write a memplan.toml" in caught.value.hint
    (tmp_path / "repo" / "pyproject.toml").write_text("[tool.memplan]\nschema = 1\n")
    assert find_config(inner) == (tmp_path / "repo" / "pyproject.toml").resolve()
    (tmp_path / "repo" / "a" / "pyproject.toml").write_text('[project]\nname = "memplan-user"\n')
    (tmp_path / "repo" / "a" / "memplan.toml").write_text("schema = 1")
    assert find_config(inner).parent.name == "a"
    (tmp_path / "repo" / "a" / "pyproject.toml").write_text("[tool.memplan]\nschema = 1\n")
    with pytest.raises(MemplanError, match=r"has budgets in memplan\.toml and in"):
        find_config(inner)


def test_what_is_a_budget_file(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("schema = 1\n")
    (tmp_path / "r.toml").write_text('model = "openai-community/gpt2"\n')
    found = {name: is_config(tmp_path / name) for name in ("b.toml", "r.toml", "memplan.toml", "x.yaml", "none.toml")}
    assert found == {"b.toml": True, "r.toml": False, "memplan.toml": True, "x.yaml": False, "none.toml": False}


def test_the_schema_has_the_keys_that_are_read() -> None:
    schema = config_schema()
    assert list(schema["properties"]) == list(TOP_KEYS)
    assert sorted(schema["properties"]["defaults"]["properties"]) == sorted(SHARED_KEYS)
    assert sorted(schema["$defs"]["Check"]["properties"]) == sorted(CHECK_KEYS)
    assert set(schema["$defs"]["Recipe"]["properties"]) == {*Recipe.model_fields, "gradient_checkpointing"}
    assert json.loads(schema_text()) == json.loads(json.dumps(schema))


def test_every_reference_of_the_schema_resolves() -> None:
    schema = config_schema()
    text = json.dumps(schema)
    names = {part.split('"')[0] for part in text.split("#/$defs/")[1:]}
    assert names <= set(schema["$defs"])


def test_the_schema_accepts_and_refuses_what_the_reader_does() -> None:
    validator = pytest.importorskip("jsonschema_rs").validator_for(config_schema())
    entry = {"name": "a", "recipe": {"model": "m"}, "budget": "72 GiB", "max_increase": "+5%", "headroom": "auto"}
    changes: list[dict[str, Any]] = [
        {}, {"budget": "72"}, {"budget": 72}, {"budget": "72 Gb"}, {"budgte": "72 GiB"}, {"level": "vram"},
        {"level": "reserved"},
        {"config": "x"}, {"max_increase": "5"}, {"max_increase": "1 GiB"}, {"headroom": "5%"}, {"headroom": "wide"},
        {"severity": "warn"}, {"on_uncertain": "maybe"}, {"override": {"padding": True}}, {"message": ""},
    ]  # fmt: skip
    for change in changes:
        document = {"schema": 1, "check": [{**entry, **change}]}
        try:
            specs_of(Document("x", "json", document))
        except InputError:
            is_read = False
        else:
            is_read = True
        assert validator.is_valid(document) is is_read, change
