"""On which GPUs a recipe fits as it is: all of them, the smallest, the cheapest by the user's prices."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from pathlib import Path

from memplan.catalog.gpus import Gpu, get_gpu, list_gpus
from memplan.errors import FileFormatError, InputError, InvalidValueError, UnsupportedError
from memplan.estimate import Fits
from memplan.planner.limit import Limit
from memplan.planner.result import GpuOption
from memplan.planner.scoring import Scorer
from memplan.recipe import MAX_FILE_BYTES, Recipe


def fitting_gpus(recipe: Recipe, gpus: Iterable[Gpu], prices: Mapping[str, float]) -> Iterator[GpuOption]:
    """The GPUs of `gpus` on which the recipe fits, in their order, found one by one."""
    for gpu in gpus:
        limit = Limit(gpu, gpu)
        scorer = Scorer(limit)
        candidate = recipe.replace(gpu=gpu.id)
        structure = scorer.structure(candidate)
        if structure is None:
            continue
        values = structure.resolved.values
        if structure.best(values["micro_batch_size"], values["sequence_length"]) is not Fits.FITS:
            continue
        try:
            verdict = limit.verdict(scorer.judge(candidate))
        except (InputError, UnsupportedError):
            continue
        if verdict.fits is Fits.FITS:
            yield GpuOption(
                gpu=gpu.id,
                name=gpu.name,
                usable_bytes=gpu.usable_bytes,
                verdict=verdict,
                price=prices.get(gpu.id),
            )


def gpus_for(recipe: Recipe, prices: Mapping[str, float] | None = None) -> tuple[GpuOption, ...]:
    """Every GPU on which a recipe fits as it is, the smallest first; with prices those, the cheapest first.

    Args:
        recipe: its own GPU does not matter.
        prices: by any name of a GPU, in any unit; GPUs without a price are left out.

    Raises:
        UnknownNameError, InvalidValueError: a price's GPU or number is wrong.
        InputError, UnsupportedError: as `memplan.estimate`.
    """
    known = checked_prices(prices or {})
    return tuple(fitting_gpus(recipe, by_price(known) if known else by_size(), known))


def best_gpus(recipe: Recipe, prices: Mapping[str, float], least_bytes: int) -> tuple[GpuOption, ...]:
    """The smallest GPU of `least_bytes` or more on which the recipe fits, and before it the cheapest where there are prices."""
    known = checked_prices(prices)
    larger = [gpu for gpu in by_size() if gpu.usable_bytes >= least_bytes]
    found = [next(fitting_gpus(recipe, by_price(known), known), None)] if known else []
    found.append(next(fitting_gpus(recipe, larger, known), None))
    return tuple(dict.fromkeys(one for one in found if one is not None))


def by_size() -> list[Gpu]:
    """Every GPU, the one with the least usable memory first."""
    return sorted(list_gpus(), key=lambda gpu: (gpu.usable_bytes, gpu.id))


def by_price(prices: Mapping[str, float]) -> list[Gpu]:
    """The priced GPUs, the cheapest first; of equal ones the larger."""
    return sorted(map(get_gpu, prices), key=lambda gpu: (prices[gpu.id], -gpu.usable_bytes, gpu.id))


def checked_prices(prices: Mapping[str, float]) -> dict[str, float]:
    """Prices by the GPU's id.

    Raises:
        UnknownNameError: no such GPU.
        InvalidValueError: a price that is no positive number, or two for one GPU.
    """
    found: dict[str, float] = {}
    for name, price in prices.items():
        gpu = get_gpu(name)
        is_number = isinstance(price, int | float) and not isinstance(price, bool)
        if not is_number or not isfinite(price) or price <= 0:
            raise InvalidValueError(f"price of {gpu.id}", price, "a number above 0")
        if gpu.id in found:
            raise InvalidValueError("prices", name, f"one price for {gpu.id}, which has two")
        found[gpu.id] = float(price)
    return found


def read_prices(text: str) -> dict[str, float]:
    """Prices from the command line: `rtx-4090=0.35,h100=2.5`, or the path of a TOML file with such lines.

    Raises:
        FileFormatError: neither; or broken TOML.
        UnknownNameError, InvalidValueError: a GPU or a number is wrong.
    """
    if "=" not in text:
        return checked_prices(_prices_of_file(Path(text)))
    prices: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        try:
            prices[name.strip()] = float(number) if equals else float("nan")
        except ValueError:
            raise InvalidValueError(f"price of {name.strip()}", number.strip(), "a number above 0") from None
    return checked_prices(prices)


def _prices_of_file(path: Path) -> dict[str, float]:
    if not path.is_file():
        raise FileFormatError(f"no such file: {path}", hint="give a TOML file, or prices like rtx-4090=0.35,h100=2.5")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise FileFormatError(f"{path} is larger than {MAX_FILE_BYTES // 1024} KiB")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid TOML: {error}") from None
    prices = data.get("prices", data)
    if not isinstance(prices, dict) or not prices:
        raise FileFormatError(f"{path} holds no prices", hint="lines like rtx-4090 = 0.35, alone or under [prices]")
    return prices
