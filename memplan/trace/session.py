"""One trace, from loading the model to the last optimizer step, inside the worker process."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from memplan.trace import (
    builder,
    fake_kernels,
    in_backward,
    losses,
    offloading,
    optimizers,
    sparse,
    torchtune,
    unsloth,
    versions,
)
from memplan.trace.batches import make_batch
from memplan.trace.evaluation import evaluation_loop
from memplan.trace.forward import forward
from memplan.trace.generation import generate
from memplan.trace.labels import Labels
from memplan.trace.methods import apply_method
from memplan.trace.patches import Patches
from memplan.trace.quantized import QuantizedLoader, quantizing
from memplan.trace.recorder import Recorder
from memplan.trace.result import TraceResult
from memplan.trace.runner import PROGRESS_MARK
from memplan.trace.saving import save
from memplan.trace.spec import TraceSpec
from memplan.trace.temporaries import KernelTemporaries


class Session:
    """The state of one trace."""

    def __init__(self, spec: TraceSpec, recorder: Recorder) -> None:
        self.spec = spec
        self.recorder = recorder
        self.device = torch.device("cuda:0") if spec.device == "cuda" else torch.device("cpu")
        self.labels = Labels(recorder)
        self.notes: list[str] = []
        if spec.peft is not None and spec.peft["peft_type"] in sparse.METHODS:
            self.notes.append("sparse weights are traced with dense ops: a few integers an entry are not counted")
        if spec.stack == "unsloth":
            self.notes.append(unsloth.NOTE)
        if spec.load_in_8bit and spec.llm_int8_threshold:
            self.notes.append(f"LLM.int8 with {spec.llm_int8_outlier_columns} outlier columns in every layer")
        self.saved: dict[int, list[int]] = {}
        self.parameters: dict[str, int] = {}
        self.where = "building the model"
        self.quantizer: QuantizedLoader | None = None
        self.done = 0.0
        # What the variables of an ordinary training loop keep alive until they are assigned again.
        self.batch: dict[str, torch.Tensor] = {}
        self.outputs: Any = None
        self.loss: Any = None
        self.loop: Any = None
        self.around_step: Any = nullcontext()

    def _enter(self, where: str, phases: float = 1.0) -> None:
        """The trace comes to `where`, having finished `phases` phases since it was last told."""
        self.where = where
        if os.environ.get("MEMPLAN_TRACE_PROGRESS"):
            self.done += phases
            beside = bool(self.spec.eval_batches) + bool(self.spec.max_new_tokens)
            total = 1 + self.spec.num_steps * (2 * self.spec.gradient_accumulation_steps + 1 + beside)
            sys.stderr.write(f"{PROGRESS_MARK}{min(self.done / total, 1.0):.4f} {where}\n")
            sys.stderr.flush()

    def build(self) -> nn.Module:
        """The model on the meta device: no storage yet, and no fake tensors, so that bitsandbytes can subclass them.

        torchtune makes its model on the device itself.
        """
        if self.spec.stack == "torchtune":
            return nn.Module()
        model = builder.build_on_meta(self.spec, builder.build_config(self.spec))
        self.quantizer = QuantizedLoader.for_spec(self.spec)
        if self.quantizer is not None:
            self.quantizer.replace_modules(model, {"": "cuda:0"})
        return model

    def run(self, model: nn.Module) -> None:
        """Load, then `num_steps` training steps."""
        model = self.load(model)
        if self.spec.updates_in_backward:
            self.labels.gradients_at_once(model)
            self.recorder.modules.hooks = "optimizer"
        optimizer = optimizers.build(self.spec, model)
        scaler = torch.amp.GradScaler("cuda") if self.spec.grad_scaler else None
        self.around_step = offloading.around_step(self.spec, model)
        for step in range(1, self.spec.num_steps + 1):
            self.step(step, model, optimizer, scaler)
            if self.spec.eval_batches:
                self.evaluate(step, model)
            if self.spec.max_new_tokens:
                self.generate(step, model)
            if self.spec.saves:
                self.recorder.mark(step, "save")
                self._enter(f"saving after step {step}")
                save(self.spec, model, optimizer)
        if self.spec.merges:
            self.recorder.mark(self.spec.num_steps, "merge")
            self._enter("merging the adapter into the base")
            with quantizing() if self.quantizer is not None else nullcontext():
                model = cast(Any, model).merge_and_unload()
            # The trainer goes, and with its optimizer what was unloaded.
            del optimizer, scaler
            self.batch, self.outputs, self.loss = {}, None, None
            gc.collect()
        self.recorder.stop()

    def load(self, model: nn.Module) -> nn.Module:
        """The model on the device, with its PEFT method applied and everything labelled."""
        spec, recorder = self.spec, self.recorder
        recorder.mark(0, "load")
        if spec.stack == "torchtune":
            return self._load_torchtune()
        if spec.warmup:
            size_bytes = builder.warmup_bytes(model, self.device, self.quantizer)
            recorder.release(recorder.allocate(size_bytes, "caching_allocator_warmup", component="temporaries"))
        parameters = sum(1 for _ in model.named_parameters()) or 1
        for name in builder.load(model, self.device, self.quantizer):
            self._enter(f"loading {name}", min(1 / parameters, max(1 - self.done, 0.0)))
        model.train(spec.train_mode)
        self.where = f"applying {spec.peft['peft_type'] if spec.peft else 'full fine-tuning'}"
        model = apply_method(spec, model, self.labels)
        losses.apply(spec, model)
        model.train(spec.train_mode)
        recorder.modules.name_modules(model)
        self.labels.after_load(model)
        self.parameters = self.labels.parameters
        return model

    def _load_torchtune(self) -> nn.Module:
        model = torchtune.build(self.spec, self.device)
        model.train(self.spec.train_mode)
        self.labels.base_is(torchtune.base_parameters(model))
        self.recorder.modules.name_modules(model)
        self.labels.after_load(model)
        self.parameters = self.labels.parameters
        return model

    def evaluate(self, step: int, model: nn.Module) -> None:
        """What Trainer evaluates after a step, while the last batch is still there; the model returns to training."""
        spec, recorder = self.spec, self.recorder
        recorder.mark(step, "evaluation")
        self._enter(f"evaluation after step {step}")

        def batch(rows: int) -> dict[str, torch.Tensor]:
            made = make_batch(replace(spec, batch=rows), model, self.device)
            self.labels.batch(made)
            return made

        evaluation_loop(spec, model, "cuda", batch, recorder.empty_cache)
        model.train(spec.train_mode)

    def generate(self, step: int, model: nn.Module) -> None:
        """What is generated after a step, while the last batch is still there; the model returns to training."""
        spec, recorder = self.spec, self.recorder
        recorder.mark(step, "generation")
        self._enter(f"generation after step {step}")
        shape = (spec.prompt_batch, spec.prompt_length)
        inputs = {
            "input_ids": torch.zeros(shape, dtype=torch.int64, device=self.device),
            "attention_mask": torch.ones(shape, dtype=torch.int64, device=self.device),
        }
        self.labels.batch(inputs)
        generate(spec, model, "cuda", inputs)
        model.train(spec.train_mode)

    def step(self, step: int, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """One optimizer step: micro-batches forward and backward, clipping, the update, gradients dropped."""
        spec, recorder = self.spec, self.recorder
        for micro_step in range(spec.gradient_accumulation_steps):
            recorder.mark(step, "forward")
            self._enter(f"forward of step {step}", 1 if self.done >= 1 else 1 - self.done)
            if spec.stack == "torchtune":
                self.loop = torchtune.before_micro_step(self, model, is_first=micro_step == 0)
            with self.around_step:
                before = recorder.live_ids()
                self.batch = make_batch(spec, model, self.device)
                self.labels.batch(self.batch)
                if self.loop is not None:
                    torchtune.forward(self)
                else:
                    forward(self, model, scaler, "cuda")
                self.saved[step] = sorted(recorder.live_ids() - before)
                recorder.mark(step, "backward")
                self._enter(f"backward of step {step}")
                in_backward.backward(self.loss, optimizer)
                if self.loop is None:
                    self.loss = self.loss.detach()  # Trainer.training_step returns it so: the graph goes here
            if spec.keep_outputs == "backward":
                self.outputs = None
        self.labels.after_backward(model)
        recorder.mark(step, "optimizer_step")
        self._enter(f"optimizer step {step}")
        if self.loop is not None:
            self.loop.scale_gradients(model)
        if spec.max_grad_norm:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), spec.max_grad_norm)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            in_backward.step(optimizer)
        self.labels.after_step(model, optimizer)
        if spec.empty_cache_steps and step % spec.empty_cache_steps == 0:
            recorder.empty_cache()
        optimizer.zero_grad(set_to_none=True)


def _is_all_ones(spec: TraceSpec) -> Callable[[dict[str, Any]], bool]:
    """Whether a mask that flash attention is given has no padding: that of a decoder beside an encoder has none."""
    return lambda scope: not spec.padding or scope["mask_function"].__name__ == "causal_mask_function"


def trace_in_process(spec: TraceSpec, *, shim_kind: str, import_seconds: float) -> TraceResult:
    """Runs the whole trace here. The process must be a worker: the patches cannot be undone."""
    started = time.perf_counter()
    import transformers

    # The auto classes import every configuration module once; that is not the trace's work.
    _ = transformers.AutoConfig, transformers.AutoModelForCausalLM
    # Imported modules are not worth scanning again and again while the trace makes objects.
    gc.freeze()
    imported = time.perf_counter()
    patches = Patches(spec)
    patches.apply()
    temporaries = KernelTemporaries(spec.gpu_arch)
    recorder = Recorder(spec.device, temporaries)
    recorder.copies_to_host = copies = offloading.host_copies(spec)
    recorder.decompositions = fake_kernels.decompositions(spec)
    length_limit = spec.prompt_length + spec.max_new_tokens
    recorder.guesses.known = [
        ("transformers/masking_utils.py", "find_packed_sequence_indices", not spec.packing),
        ("transformers/masking_utils.py", "", not spec.padding),
        ("transformers/modeling_flash_attention_utils.py", "_flash_attention_forward", spec.packing),
        ("transformers/modeling_flash_attention_utils.py", "", spec.sequence),
        ("transformers/generation/utils.py", "__call__", lambda scope: scope["length"] >= length_limit),
        ("transformers/generation/utils.py", "generate", True),
        ("transformers/generation/utils.py", "_prepare_special_tokens", False),
        ("transformers/generation/utils.py", "_get_logits_processor", False),
        ("torch/amp/grad_scaler.py", "", 0),
        # Weights are larger than eps, so that their root mean square scales the step.
        ("lomo_optim/adalomo.py", "func", 1),
        ("peft/tuners/frod/layer.py", "_get_frod_tensors", lambda scope: scope["V"].shape[0]),
        ("peft/tuners/vblora/layer.py", "_get_lora_matrices", False),
        *losses.guesses(spec),
    ]
    # Every text in a packed row begins with position 0.
    recorder.sizes.rules["transformers/modeling_flash_attention_utils.py", "prepare_fa_kwargs_from_position_ids"] = (
        lambda _scope, _mask: spec.packed_sequences
    )
    if spec.stack == "unsloth":
        recorder.sizes.rules |= unsloth.sizes(spec)
    patches.attention.decomposed = recorder.decomposed
    session = Session(spec, recorder)
    model = session.build()
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        # The padding is the source's. A decoder that is given no mask has none or makes one of ones (modeling_bart.py).
        recorder.guesses.known.insert(0, ("transformers/masking_utils.py", "_ignore_causal_mask_sdpa", True))
        recorder.guesses.known.insert(0, ("transformers/masking_utils.py", "flash_attention_mask", _is_all_ones(spec)))
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(recorder)
        stack.enter_context(recorder.modules.installed())
        stack.enter_context(offloading.streams(spec, recorder))
        try:
            session.run(model)
        except Exception as error:
            module = recorder.modules.last_error_path
            error.memplan_where = session.where + (f", module {module}" if module else "")  # type: ignore[attr-defined]
            raise
        session.labels.finish()
    finished = time.perf_counter()
    log = recorder.log
    return TraceResult(
        storages=session.labels.storages(),
        events=log.events,
        marks=[(mark.event_index, mark.step, mark.phase) for mark in log.marks],
        cache_flushes=log.cache_flushes,
        synchronized=log.synchronized,
        second_stream=[number for number, storage in enumerate(log.storages) if storage.stream],
        reused_later=sorted(recorder.reused_later),
        parameters=session.parameters,
        saved=session.saved,
        host_bytes=patches.host_bytes,
        host_copies_bytes=copies.held_bytes if copies is not None else 0,
        guesses={**recorder.guesses.counted, **recorder.sizes.counted},
        attention={backend.value: count for backend, count in patches.attention.chosen.items()},
        notes=session.notes,
        versions={"shim": shim_kind, **versions.installed()},
        seconds={"import": import_seconds + imported - started, "trace": finished - imported},
        op_calls=dict(log.calls),
    )
