"""Where in the program a traceback stopped: the phase of the step, and what part of the model ran."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')
# pytest prints `path:line: in name`, and IPython `path in name(...)`.
_SHORT = re.compile(r"^(?P<file>[\w./~<>-]+\.py):(?P<line>\d+): (?:in (?P<name>\w+))?")
_IPYTHON = re.compile(r"^(?:File )?(?P<file>[\w./~<>-]+\.py)(?::(?P<line>\d+))?,? in (?P<name>\w+)\(")

# The last rule that a frame fits decides; file or function, then the phase and what it says of the tensor.
_PHASES: tuple[tuple[str, str], ...] = (
    (
        r"torch/optim/|bitsandbytes/optim|transformers/optimization|optimizer\.step|/optim/|clip_grad|grad_scaler",
        "optimizer_step",
    ),
    (r"torch/autograd/__init__|(?:_tensor|accelerator|checkpoint)\.py backward", "backward"),
    (r"from_pretrained|_load_|load_state_dict|core_model_loading|caching_allocator_warmup", "load"),
    (r"torch/nn/modules/module\.py (?:_apply|convert|to|cuda)\b", "load"),
    (r"\bforward\b|_call_impl|compute_loss|training_step", "forward"),
)
_PARTS: tuple[tuple[str, str], ...] = (
    (r"loss_utils|cross_entropy|loss_function|compute_loss_func|\.float\(\)|upcast", "logits_and_loss"),
    (r"lm_head|logits", "lm_head"),
    (r"bitsandbytes/(?!optim)|dequantize", "quantized"),
    (r"attention|sdpa|flash|softmax|self_attn|repeat_kv|rotary", "attention"),
    (r"\bmlp\b|act_fn|gate_proj|down_proj|up_proj|feed_forward|intermediate", "mlp"),
    (r"norm", "norm"),
    (r"embed", "embedding"),
    (r"peft/tuners|lora_", "adapter"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a traceback."""

    file: str
    line: int
    name: str
    code: str = ""

    @property
    def short(self) -> str:
        """The file from its package on."""
        return re.sub(r".*(?:site|dist)-packages/", "", self.file)


@dataclass(frozen=True, slots=True)
class Place:
    """What the frames say.

    Attributes:
        frames: outermost first.
        phase: `load`, `forward`, `backward`, `optimizer_step`; empty where no frame tells.
        part: what of the model ran: attention, mlp, lm_head, logits_and_loss, ...; empty where no frame tells.
        recomputed: whether a checkpointed layer ran again inside backward.
    """

    frames: tuple[Frame, ...] = ()
    phase: str = ""
    part: str = ""
    recomputed: bool = False

    @property
    def last(self) -> Frame | None:
        """The innermost frame."""
        return self.frames[-1] if self.frames else None


def place_of(text: str) -> Place:
    """The place of the last traceback that comes before the last out-of-memory message in `text`."""
    end = text.rfind("Tried to allocate")
    before = text[: end if end >= 0 else len(text)]
    begins = [match.start() for match in re.finditer(r"Traceback \(most recent call last\)", before)]
    frames = _frames(before[begins[-1] :] if begins else before)
    if not frames:
        return Place()
    phases = [_first(_PHASES, f"{frame.file} {frame.name} {frame.code}") for frame in frames]
    known = [phase for phase in phases if phase]
    part = next((part for frame in reversed(frames) if (part := _part(frame))), "")
    if "backward" in known:
        inside = known[known.index("backward") + 1 :]
        return Place(frames, "backward", part, recomputed="forward" in inside)
    for phase in ("optimizer_step", "load"):
        if phase in known and not (phase == "load" and "forward" in known):
            return Place(frames, phase, part)
    return Place(frames, known[-1] if known else "", part)


def _part(frame: Frame) -> str:
    # A file's name says little beside its code, but torch's own functions have telling names.
    return _first(_PARTS, f"{frame.code} {frame.name}") or _first(_PARTS, frame.short.rpartition("/")[2])


def _first(rules: tuple[tuple[str, str], ...], text: str) -> str:
    return next((name for pattern, name in rules if re.search(pattern, text)), "")


def _frames(text: str) -> tuple[Frame, ...]:
    lines = [re.sub(r"^\s*(?:\[(?:rank)?\d+\]:|[E>|])?\s*", "", line) for line in text.splitlines()]
    found = []
    for index, line in enumerate(lines):
        match = _FRAME.search(line) or _SHORT.match(line) or _IPYTHON.match(line)
        if match is None:
            continue
        following = lines[index + 1] if index + 1 < len(lines) else ""
        code = "" if _FRAME.search(following) else following.strip()
        found.append(Frame(match["file"], int(match["line"] or 0), match["name"] or "", code))
    return tuple(found)
