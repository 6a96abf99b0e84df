"""`memplan models`, `gpus`, `methods`, `optimizers`: what memplan knows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from memplan.cli.output import write_json, write_report
from memplan.errors import UnknownNameError

Query = Annotated[str | None, typer.Argument(metavar="QUERY", help="A name, or a part of names.")]
Json = Annotated[bool, typer.Option("--json", help="JSON alone on stdout.")]


def models(query: Query = None, *, as_json: Json = False) -> int:
    """Checkpoints whose architecture memplan knows, with exact parameter counts."""
    from memplan.cards import card_ids, load_card
    from memplan.inventory import model_details, model_entry, stored_bytes
    from memplan.report.catalog import model_report, models_report

    exact = _exact(query, {name: card_id for card_id in card_ids() for name in (card_id, card_id.split("/")[1])})
    if exact is not None:
        card = load_card(exact)
        if as_json:
            write_json(model_details(card))
        else:
            write_report(model_report(card, stored_bytes(card.id)))
        return 0
    cards = [load_card(card_id) for card_id in _matching("model", query, card_ids(), card_ids())]
    if as_json:
        write_json([model_entry(card) for card in cards])
    else:
        write_report(models_report(cards))
    return 0


def gpus(query: Query = None, *, as_json: Json = False) -> int:
    """GPUs: what is advertised, and what a program can have of it."""
    from memplan.catalog.gpus import get_gpu, list_gpus
    from memplan.inventory import gpu_entry
    from memplan.report.catalog import gpu_report, gpus_report

    exact = _exact(query, {name: gpu.id for gpu in list_gpus() for name in (gpu.id, gpu.name, *gpu.aliases)})
    if exact is not None:
        gpu = get_gpu(exact)
        if as_json:
            write_json(gpu_entry(gpu))
        else:
            write_report(gpu_report(gpu))
        return 0
    names = [" ".join((gpu.id, gpu.name, *gpu.aliases)) for gpu in list_gpus()]
    chosen = _matching("GPU", query, [gpu.id for gpu in list_gpus()], names)
    found = [gpu for gpu in list_gpus() if gpu.id in chosen]
    if as_json:
        write_json([gpu_entry(gpu) for gpu in found])
    else:
        write_report(gpus_report(found))
    return 0


def methods(query: Query = None, *, as_json: Json = False) -> int:
    """Fine-tuning methods."""
    from memplan.inventory import method_entry
    from memplan.methods import list_methods
    from memplan.report.catalog import methods_report

    known = list_methods()
    texts = [" ".join((method.name, *method.aliases, method.description)) for method in known]
    chosen = _matching("method", query, [method.name for method in known], texts)
    found = [method for method in known if method.name in chosen]
    if as_json:
        write_json([method_entry(method) for method in found])
    else:
        write_report(methods_report(found))
    return 0


def optimizers(query: Query = None, *, as_json: Json = False) -> int:
    """Optimizers by the names of transformers' `optim`, with the state each keeps."""
    from memplan.inventory import optimizer_entry, state_bytes
    from memplan.optimizers.catalog import optimizer_rows
    from memplan.report.catalog import optimizers_report

    rows = optimizer_rows()
    chosen = set(_matching("optimizer", query, list(rows), [f"{row.name} {row.library}" for row in rows.values()]))
    found = [row for row in rows.values() if row.name in chosen]
    if as_json:
        write_json([optimizer_entry(row) for row in found])
    else:
        write_report(optimizers_report([(row, _state_text(state_bytes(row.name))) for row in found]))
    return 0


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
