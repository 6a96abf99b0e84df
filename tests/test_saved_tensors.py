"""Lists of saved tensors: what is alive where forward ends, by layer, and what only one of two lists has."""

from __future__ import annotations

from memplan.saved_tensors import LayerComparison, SavedTensor, compare_layers
from memplan.trace.result import Storage, TraceResult


def result(*born: tuple[int, str, str], dead: tuple[int, ...] = ()) -> TraceResult:
    """A second step whose forward makes these storages (bytes, op, module), and frees some before it ends."""
    storages = [Storage(0, 0, (), "", "", "", "", "")]
    storages += [
        Storage(number, size, (size,), "uint8", op, module, "", "") for number, (size, op, module) in enumerate(born, 1)
    ]
    events = [1, *range(2, len(storages)), *(-number for number in dead), -2]
    # The first storage is of an earlier phase; the last event is of backward.
    return TraceResult(
        storages=storages, events=events, marks=[(0, 0, "load"), (1, 2, "forward"), (len(events) - 1, 2, "backward")]
    )


WEIGHT = (4096, "load", "model")
INPUT = (1000, "zeros", "")


def test_what_is_alive_at_the_end_is_listed_by_layer() -> None:
    found = compare_layers(
        result(
            WEIGHT, INPUT, (700, "mm", "model.layers.0.mlp.up_proj"), (5000, "silu", "model.layers.0.mlp"), dead=(3,)
        ),
        result(WEIGHT, INPUT, (5120, "silu", "model.layers.0.mlp.act_fn")),
    )
    assert {entry.layer: entry.trace for entry in found} == {
        "": (SavedTensor(1024, "zeros"),),
        "model.layers.0": (SavedTensor(5120, "silu"),),
    }
    assert all(entry.is_equal for entry in found)


def test_the_first_number_of_a_path_is_the_layer() -> None:
    expert = (600, "mm", "model.layers.10.mlp.experts.3.up_proj")
    assert {entry.layer for entry in compare_layers(result(WEIGHT, INPUT, expert), result(WEIGHT, INPUT, expert))} == {
        "", "model.layers.10",
    }  # fmt: skip


def test_a_difference_names_what_only_one_has() -> None:
    entry, twice = SavedTensor(512, "mul"), SavedTensor(512, "add")
    layer = LayerComparison("h.0", (SavedTensor(1024, "mm"), entry), (entry, twice))
    assert not layer.is_equal
    assert layer.difference == "h.0: only the estimate saves 1,024 bytes (mm), only the trace 512 bytes (add)"
    one_more = LayerComparison("", (entry, entry), (twice,))
    assert (
        one_more.difference == "outside of the layers: only the estimate saves 512 bytes (mul), only the trace nothing"
    )


def test_a_layer_of_one_list_only_differs() -> None:
    found = compare_layers(result(WEIGHT, INPUT), result(WEIGHT, INPUT, (600, "mm", "h.0.mlp")))
    assert [entry.layer for entry in found if not entry.is_equal] == ["h.0"]
