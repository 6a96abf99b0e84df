"""Real training steps, read phase by phase; an out-of-memory error ends the run and is its result.

The program is the trace's (`memplan.trace.session`), statement by statement, with real tensors: what a loop's variables
keep alive, and when they are assigned again, is part of what is measured.
"""

from __future__ import annotations

import dataclasses
import gc
import time
import traceback
from typing import Any

import torch
from torch import nn

from memplan.measure.account import Account, CpuAccount, CudaAccount
from memplan.measure.environment import environment, host_peak_bytes
from memplan.measure.loading import RealQuantizedLoader, load
from memplan.measure.nvml import Nvml
from memplan.measure.resident import paged_bytes, resident_bytes
from memplan.measure.result import Death, DeviceReading, MeasureOptions, MeasureResult
from memplan.trace import builder, in_backward, optimizers
from memplan.trace.batches import make_batch
from memplan.trace.forward import forward
from memplan.trace.methods import apply_method
from memplan.trace.spec import TraceSpec

# A scaler that finds infinities skips the update: so many further steps are tried until two updates have happened.
_MAX_SKIPPED = 8
_FRAMES = 16


class _Base:
    """Stands where the trace labels storages: remembers which parameters are the base model's."""

    def __init__(self) -> None:
        self.names: set[int] | None = None

    def cache_emptied(self) -> None:
        """PEFT has emptied the cache itself."""

    def before_method(self, model: nn.Module) -> None:
        self.names = {id(parameter) for parameter in model.parameters()}


class Session:
    """The state of one measured run."""

    def __init__(self, spec: TraceSpec, options: MeasureOptions) -> None:
        self.spec, self.options = spec, options
        self.nvml = Nvml.open() if options.device == "cuda" else None
        before = self.nvml.memory() if self.nvml is not None else None
        self.used_before_bytes = before.used_bytes if before is not None else None
        self.notes: list[str] = []
        self.base = _Base()
        self.parameters: dict[str, int] = {}
        self.resident: dict[str, int] = {}
        self.place = (0, "load")
        self.paged_bytes = self.skipped = 0
        self.device, self.account = self._open()
        # What the variables of an ordinary training loop keep alive until they are assigned again.
        self.batch: dict[str, torch.Tensor] = {}
        self.outputs: Any = None
        self.loss: Any = None

    def _open(self) -> tuple[torch.device, Account]:
        if self.options.device == "cpu":
            self.notes.append("run on the CPU for testing: live bytes of storages, not a reading of a GPU")
            return torch.device("cpu"), CpuAccount()
        device = torch.device("cuda:0")
        torch.cuda.set_device(device)
        if self.options.capacity_bytes is not None:
            total = torch.cuda.get_device_properties(device).total_memory
            # CUDACachingAllocator: allowed = fraction * total, compared with what all segments would take.
            torch.cuda.set_per_process_memory_fraction(min(1.0, self.options.capacity_bytes / total), device)
        return device, CudaAccount(device, history=self.options.history)

    def run(self) -> MeasureResult:
        """Load and step; the result says where it died if it did."""
        started, death = time.perf_counter(), None
        try:
            self._run()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            death = self._death(error)
        return MeasureResult(
            spec=dataclasses.asdict(self.spec),
            options=self.options,
            outcome="out_of_memory" if death else "ok",
            phases=tuple(self.account.phases),
            resident=self.resident,
            parameters=self.parameters,
            device=self._device_reading(),
            death=death,
            host_peak_bytes=host_peak_bytes(),
            paged_bytes=self.paged_bytes,
            environment=environment(torch, self.options.device, self.nvml),
            statistics=self.account.statistics(),
            notes=tuple(self.notes),
            seconds={"run": round(time.perf_counter() - started, 3)},
            history=self.account.history() if self.options.history else (),
        )

    def _run(self) -> None:
        spec = self.spec
        self._begin(0, "load")
        model = self._load()
        self.account.end()
        self.parameters = count_parameters(model)
        self.resident = resident_bytes(model, self.base.names)
        optimizer = optimizers.build(spec, model)
        scaler = torch.amp.GradScaler(self.device.type) if spec.grad_scaler else None
        wanted, step = spec.num_steps, 0
        while step < wanted:
            step += 1
            if self._step(step, model, optimizer, scaler) and self.skipped < _MAX_SKIPPED:
                self.skipped += 1
                wanted += 1
        if self.skipped:
            self.notes.append(f"the gradient scaler skipped {self.skipped} updates; as many steps were added")
        self.resident = {**self.resident, **resident_bytes(model, self.base.names, optimizer)}
        self.paged_bytes = paged_bytes(optimizer)

    def _load(self) -> nn.Module:
        spec = self.spec
        model: Any = builder.build_on_meta(spec, builder.build_config(spec))
        quantizer = RealQuantizedLoader.for_spec(spec)
        if quantizer is not None:
            quantizer.replace_modules(model, None)
        load(spec, model, self.device, quantizer)
        model.train(spec.train_mode)
        model = apply_method(spec, model, self.base)  # type: ignore[arg-type]
        # PEFT puts adapters where the weights are, except for parameters of some classes of its own.
        if any(parameter.device.type != self.device.type for parameter in model.parameters()):
            model.to(self.device)
        found: nn.Module = model.train(spec.train_mode)
        gc.collect()
        return found

    def _step(self, step: int, model: nn.Module, optimizer: Any, scaler: Any) -> bool:
        """One optimizer step; whether the scaler skipped its update."""
        spec = self.spec
        for micro in range(spec.gradient_accumulation_steps):
            self._begin(step, "forward")
            self.batch = make_batch(spec, model, self.device)
            fill(self.batch, model, spec)
            forward(self, model, scaler, self.device.type)
            self.account.end()
            self._begin(step, "backward")
            in_backward.backward(self.loss, optimizer)
            self.loss = self.loss.detach()  # Trainer.training_step returns it so: the graph goes here
            if spec.keep_outputs == "backward":
                self.outputs = None
            self.account.end()
            if step == 1 and micro == 0:
                self.resident["gradients"] = gradient_bytes(model)
        self._begin(step, "optimizer_step")
        skipped = self._update(model, optimizer, scaler)
        if spec.empty_cache_steps and step % spec.empty_cache_steps == 0 and self.device.type == "cuda":
            torch.cuda.empty_cache()
        optimizer.zero_grad(set_to_none=True)
        self.account.end()
        return skipped

    def _update(self, model: nn.Module, optimizer: Any, scaler: Any) -> bool:
        if self.spec.max_grad_norm:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), self.spec.max_grad_norm)
        if scaler is None:
            in_backward.step(optimizer)
            return False
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        return bool(scaler.get_scale() < scale)

    def _begin(self, step: int, phase: str) -> None:
        self.place = (step, phase)
        self.account.begin(step, phase)

    def _death(self, error: RuntimeError) -> Death:
        step, phase = self.place
        frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
        allocated = reserved = None
        if self.device.type == "cuda":
            allocated, reserved = torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        self.account.abandon()
        return Death(
            step=step,
            phase=phase,
            where="loading the model" if phase == "load" else f"{phase} of step {step}",
            message=str(error)[:4000],
            frames=tuple(
                f"{entry.filename.split('site-packages/')[-1]}:{entry.lineno} {entry.name}" for entry in frames
            ),
            allocated_bytes=allocated,
            reserved_bytes=reserved,
        )

    def _device_reading(self) -> DeviceReading:
        if self.device.type != "cuda":
            return DeviceReading()
        properties = torch.cuda.get_device_properties(self.device)
        memory = self.nvml.memory(str(getattr(properties, "uuid", ""))) if self.nvml is not None else None
        return DeviceReading(
            torch_total_bytes=properties.total_memory,
            nvml_total_bytes=memory.total_bytes if memory else None,
            nvml_driver_reserved_bytes=memory.driver_reserved_bytes if memory else None,
            used_before_bytes=self.used_before_bytes,
            used_bytes=memory.used_bytes if memory else None,
            process_bytes=memory.process_bytes if memory else None,
            free_bytes=torch.cuda.mem_get_info(self.device)[0],
            reserved_bytes=torch.cuda.memory_reserved(self.device),
        )


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error, or a library's that says so in words (cuBLAS handles, bitsandbytes' kernels)."""
    text = str(error).casefold()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
    )


def fill(batch: dict[str, torch.Tensor], model: Any, spec: TraceSpec) -> None:
    """Random tokens and labels, in place: what routing and embeddings do depends on them."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    for key, values in batch.items():
        if key == "attention_mask":
            continue
        high = vocabulary
        if key == "labels" and "classification" in spec.task:
            high = spec.num_labels
        elif key == "task_ids":
            high = 1
        elif key in ("start_positions", "end_positions"):
            high = spec.sequence
        values.random_(0, high)


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Elements, as PEFT's `print_trainable_parameters` counts them: of quantized weights, those before packing."""
    total = trainable = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else state.shape.numel()
        total += count
        trainable += count if parameter.requires_grad else 0
    return {"total": total, "trainable": trainable}


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of all gradients that exist, in blocks."""
    from memplan.measure.resident import block_bytes

    return sum(block_bytes(parameter.grad) for parameter in model.parameters() if parameter.grad is not None)
