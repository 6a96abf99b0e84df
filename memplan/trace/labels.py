"""Says what each storage was for: the `component` of the shared vocabulary."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from memplan.trace import quantized
from memplan.trace.in_backward import states
from memplan.trace.recorder import Recorder, plain_path
from memplan.trace.result import Storage


class Labels:
    """Collects what is known about storages while the trace runs, and classifies the rest at the end."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.base_ids: set[int] | None = None
        self.parameters: dict[str, int] = {}
        self._head_paths: set[str] = set()

    def _label(self, tensor: torch.Tensor, component: str, name: str) -> None:
        storage_id = self.recorder.id_of(tensor)
        if storage_id:
            record = self.recorder.log.storages[storage_id]
            record.component, record.name = component, plain_path(name)

    def cache_emptied(self) -> None:
        """The program calls `torch.cuda.empty_cache()` here."""
        self.recorder.empty_cache()

    def before_method(self, model: nn.Module) -> None:
        """Everything that is a parameter now belongs to the base model."""
        self.base_is(model.parameters())

    def base_is(self, parameters: Iterable[torch.Tensor]) -> None:
        """These belong to the base model, all others to the method."""
        self.base_ids = {self.recorder.id_of(parameter) for parameter in parameters}

    def after_load(self, model: nn.Module) -> None:
        """Labels parameters, buffers and quantization state; counts parameters."""
        total = trainable = 0
        for name, parameter in model.named_parameters():
            base = self.base_ids is None or self.recorder.id_of(parameter) in self.base_ids
            self._label(parameter, "weights" if base else "adapters", name)
            state = getattr(parameter, "quant_state", None)
            count = parameter.numel() if state is None else state.shape.numel()
            total += count
            trainable += count if parameter.requires_grad else 0
        for name, buffer in model.named_buffers():
            self._label(buffer, "buffers", name)
        for name, tensor in quantized.state_tensors(model):
            self._label(tensor, "quantization_state", name)
        self.parameters = {"total": total, "trainable": trainable}
        head = getattr(model, "get_output_embeddings", lambda: getattr(model, "output", None))()
        self._head_paths = {*self._paths_of(model, head), ""}

    def _paths_of(self, model: nn.Module, head: Any) -> list[str]:
        name = self.recorder.modules.names.get(id(head))
        return [name] if name else []

    def batch(self, batch: dict[str, Any]) -> None:
        """Labels the batch on the device."""
        for name, value in batch.items():
            if isinstance(value, torch.Tensor):
                self._label(value, "buffers", f"batch.{name}")

    def after_backward(self, model: nn.Module) -> None:
        """Labels what ended up in `Parameter.grad`."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self._label(parameter.grad, "gradients", name)

    def gradients_at_once(self, model: nn.Module) -> None:
        """Labels what ends up in `Parameter.grad`, before the hooks of an optimizer that is made later drop it."""

        def label(parameter: nn.Parameter, name: str) -> None:
            self._label(parameter.grad, "gradients", name)

        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(partial(label, name=name))

    def after_step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Labels the optimizer's state tensors."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for owner, key, value in states(optimizer):
            if isinstance(value, torch.Tensor):
                name = owner if isinstance(owner, str) else names.get(id(owner), "")
                self._label(value, "optimizer_states", f"{name}.{key}")

    def finish(self) -> None:
        """Classifies what is still without a component.

        Born while a module ran and outliving it means saved for backward; the rest is temporary. What the loss and
        the head allocate, forward or backward, is `logits_and_loss`.
        """
        log = self.recorder.log
        phase_of = self._phase_lookup()
        births = {event: index for index, event in enumerate(log.events) if event > 0}
        for storage_id, record in enumerate(log.storages[1:], start=1):
            if record.component:
                continue
            phase = phase_of(births.get(storage_id, 0))
            path = log.ops[record.op_id][1]
            if phase in ("forward", "backward", "evaluation", "generation") and path in self._head_paths:
                record.component = "logits_and_loss"
            elif record.born_in_module and not record.died_in_module:
                record.component = "activations"
            else:
                record.component = "temporaries"

    def _phase_lookup(self) -> Any:
        marks = [(mark.event_index, mark.phase) for mark in self.recorder.log.marks]

        def phase_of(index: int) -> str:
            phase = "load"
            for start, name in marks:
                if start > index:
                    break
                phase = name
            return phase

        return phase_of

    def storages(self) -> list[Storage]:
        """Every recorded storage, classified."""
        log = self.recorder.log
        return [
            Storage(
                storage_id, record.size_bytes, record.shape, record.dtype, log.ops[record.op_id][0],
                log.ops[record.op_id][1], record.component, record.name,
            )
            for storage_id, record in enumerate(log.storages)
        ]  # fmt: skip
