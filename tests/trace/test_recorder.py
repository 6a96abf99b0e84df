"""The recorder over real CPU tensors: births and deaths in order, by storage and not by tensor."""

from __future__ import annotations

import torch

from memplan.trace.recorder import Recorder, plain_path


def _events(recorder: Recorder) -> list[int]:
    storages = recorder.log.storages
    return [storages[abs(event)].size_bytes * (1 if event > 0 else -1) for event in recorder.log.events]


def test_births_and_deaths_follow_the_last_reference() -> None:
    recorder = Recorder("cpu")
    with recorder:
        first = torch.ones(1000)
        view = first.view(10, 100)
        second = first + 1
        del first
        del second
        del view
    assert _events(recorder) == [4000, 4000, -4000, -4000]


def test_in_place_ops_and_views_allocate_nothing() -> None:
    recorder = Recorder("cpu")
    with recorder:
        tensor = torch.zeros(64)
        tensor.add_(1)
        tensor[:10].mul_(2)
        tensor.t()
    assert [size for size in _events(recorder) if size > 0] == [256]


def test_saved_tensors_live_until_the_graph_dies() -> None:
    recorder = Recorder("cpu")
    weight = torch.ones(256, requires_grad=True)
    with recorder:
        loss = weight.exp().sum()
        alive_before = {recorder.log.storages[i].size_bytes for i in recorder.live_ids()}
        recorder.mark(1, "backward")
        loss.backward()
    assert 1024 in alive_before
    assert recorder.log.marks[-1].phase == "backward"


def test_sums_of_gradients_are_in_place_as_in_the_engine() -> None:
    """Two uses of one tensor: a plain engine adds into the first gradient, so only two buffers ever exist."""
    with torch.autograd.set_multithreading_enabled(False):
        leaf = torch.ones(512, requires_grad=True)
        recorder = Recorder("cpu")
        middle = leaf * 2
        loss = (middle * 3).sum() + (middle * 5).sum()
        with recorder:
            recorder.mark(1, "backward")
            loss.backward()
            recorder.stop()
    names = [recorder.log.ops[recorder.log.storages[event].op_id][0] for event in recorder.log.events if event > 0]
    assert names.count("add") == 0
    assert names.count("mul") >= 3


def test_reports_an_empty_cache_at_its_place() -> None:
    recorder = Recorder("cpu")
    with recorder:
        kept = torch.ones(8)
        recorder.empty_cache()
        other = kept + 1
    assert recorder.log.cache_flushes == [1]
    assert other.sum() == 16


def test_plain_path_removes_peft_wrapping() -> None:
    assert plain_path("base_model.model.model.layers.0.mlp") == "model.layers.0.mlp"
    assert plain_path("base_model.model") == ""
    assert plain_path("model.norm") == "model.norm"
