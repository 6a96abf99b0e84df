"""`memplan models`, `gpus`, `methods`, `optimizers`: what memplan knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from memplan.cli.output import write_json, write_report
from memplan.errors import UnknownNameError

Query = Annotated[str | None, typer.Argument(metavar="QUERY", help="A name, or a part of names.")]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]

# How weights may be stored, as recipes say it.
_STORED = (
    ("float32", {"dtype": "float32"}),
    ("bfloat16", {"dtype": "bfloat16"}),
    ("LLM.int8", {"load_in_8bit": True, "method": "lora"}),
    ("NF4", {"load_in_4bit": True, "method": "lora"}),
    ("NF4, double quantization", {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "method": "lora"}),
)
_SAMPLE_SHAPE = (4096, 4096)
# Low-rank optimizers want to be told where to work.
_SAMPLE_OPTIONS = {layout: {"optim_target_modules": "all-linear"} for layout in ("galore", "apollo")}


def models(query: Query = None, *, as_json: Json = False) -> int:
    """Checkpoints whose architecture memplan knows, with exact parameter counts."""
    from memplan.cards import card_ids, load_card
    from memplan.report.catalog import model_report, models_report

    exact = _exact(query, {name: card_id for card_id in card_ids() for name in (card_id, card_id.split("/")[1])})
    if exact is not None:
        card = load_card(exact)
        stored = _stored(card.id)
        if as_json:
            write_json(card.model_dump(mode="json") | {"weights_bytes": dict(stored)})
        else:
            write_report(model_report(card, stored))
        return 0
    cards = [load_card(card_id) for card_id in _matching("model", query, card_ids(), card_ids())]
    if as_json:
        keys = ("id", "parameters", "model_class", "confidence")
        write_json([{key: getattr(card, key) for key in keys} for card in cards])
    else:
        write_report(models_report(cards))
    return 0


def _stored(card_id: str) -> list[tuple[str, int]]:
    """Bytes of the base weights, quantization state included, by how they are stored."""
    from memplan.engine import model_states
    from memplan.errors import MemplanError
    from memplan.estimate import Component
    from memplan.recipe import Recipe

    found = []
    for name, keys in _STORED:
        recipe: dict[str, Any] = {"prepare_model_for_kbit_training": False} if "method" in keys else {}
        try:
            state = model_states(Recipe(model=card_id, **recipe, **keys))
        except MemplanError:
            continue  # LoRA finds no default targets, or the base is quantized already
        loaded = state.loaded
        found.append((name, loaded[Component.WEIGHTS] + loaded.get(Component.QUANTIZATION_STATE, 0)))
    return found


def gpus(query: Query = None, *, as_json: Json = False) -> int:
    """GPUs: what is advertised, and what a program can have of it."""
    from memplan.catalog.gpus import get_gpu, list_gpus
    from memplan.report.catalog import gpu_report, gpus_report

    exact = _exact(query, {name: gpu.id for gpu in list_gpus() for name in (gpu.id, gpu.name, *gpu.aliases)})
    if exact is not None:
        gpu = get_gpu(exact)
        if as_json:
            write_json(asdict(gpu))
        else:
            write_report(gpu_report(gpu))
        return 0
    names = [" ".join((gpu.id, gpu.name, *gpu.aliases)) for gpu in list_gpus()]
    chosen = _matching("GPU", query, [gpu.id for gpu in list_gpus()], names)
    found = [gpu for gpu in list_gpus() if gpu.id in chosen]
    if as_json:
        write_json([asdict(gpu) for gpu in found])
    else:
        write_report(gpus_report(found))
    return 0


def methods(query: Query = None, *, as_json: Json = False) -> int:
    """Fine-tuning methods."""
    from memplan.methods import list_methods
    from memplan.report.catalog import methods_report

    known = list_methods()
    texts = [" ".join((method.name, *method.aliases, method.description)) for method in known]
    chosen = _matching("method", query, [method.name for method in known], texts)
    found = [method for method in known if method.name in chosen]
    if as_json:
        write_json(
            [
                {
                    "name": method.name,
                    "description": method.description,
                    "peft_type": method.peft_type,
                    "options": dict(method.options),
                    "aliases": list(method.aliases),
                }
                for method in found
            ]
        )
    else:
        write_report(methods_report(found))
    return 0


def optimizers(query: Query = None, *, as_json: Json = False) -> int:
    """Optimizers by the names of transformers' `optim`, with the state each keeps."""
    from memplan.optimizers.catalog import optimizer_rows
    from memplan.report.catalog import optimizers_report

    rows = optimizer_rows()
    chosen = set(_matching("optimizer", query, list(rows), [f"{row.name} {row.library}" for row in rows.values()]))
    found = [row for row in rows.values() if row.name in chosen]
    states = [_state_bytes(row.name) for row in found]
    if as_json:
        write_json(
            [
                asdict(row) | {"fixed": dict(row.fixed), "optim_args": list(row.optim_args)} | state
                for row, state in zip(found, states, strict=True)
            ]
        )
    else:
        write_report(optimizers_report([(row, _state_text(state)) for row, state in zip(found, states, strict=True)]))
    return 0


def _state_bytes(name: str) -> dict[str, float | None]:
    """Bytes of state a parameter of a large float32 matrix, on the device and in host memory."""
    from memplan.dtypes import DType
    from memplan.errors import MemplanError
    from memplan.optimizers import ParamInfo, get_optimizer
    from memplan.optimizers.catalog import optimizer_rows

    elements = _SAMPLE_SHAPE[0] * _SAMPLE_SHAPE[1]
    sample = ParamInfo(_SAMPLE_SHAPE, DType.FLOAT32, "layer.weight", False, True)
    try:
        optimizer = get_optimizer(name, **_SAMPLE_OPTIONS.get(optimizer_rows()[name].layout.partition("_")[0], {}))
        state = optimizer.state_bytes({sample: 1})
    except MemplanError:
        return {"device_bytes_per_parameter": None, "host_bytes_per_parameter": None}
    return {
        "device_bytes_per_parameter": round(state.device_unrounded_bytes / elements, 4),
        "host_bytes_per_parameter": round((state.host_bytes + state.paged_bytes) / elements, 4),
    }


def _state_text(state: dict[str, float | None]) -> str:
    device, host = state["device_bytes_per_parameter"], state["host_bytes_per_parameter"]
    if device is None or host is None:
        return "refused"
    return f"{host:.2f} host" if host else f"{device:.2f}"


def _exact(query: str | None, ids_by_name: dict[str, str]) -> str | None:
    """The id that a query names without regard to case, if exactly one bears the name."""
    folded = (query or "").casefold()
    found = {id_ for name, id_ in ids_by_name.items() if name.casefold() == folded}
    return found.pop() if len(found) == 1 else None


def _matching(kind: str, query: str | None, ids: Sequence[str], texts: Iterable[str]) -> list[str]:
    """The ids whose text holds every word of the query.

    Raises:
        UnknownNameError: none does.
    """
    if not query:
        return list(ids)
    words = query.casefold().split()
    found = [id_ for id_, text in zip(ids, texts, strict=True) if all(word in text.casefold() for word in words)]
    if not found:
        raise UnknownNameError(kind, query, ids, show=0, hint=f"`memplan {kind.lower()}s` lists all {len(ids)}")
    return found
