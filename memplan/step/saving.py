"""What saving a checkpoint copies on the device, on its way to the host: code books of weights that are quantized twice.

Sources: bitsandbytes/functional.py, `QuantState.as_dict`: `nested_quant_map` is cloned (0.50.2); PEFT 0.21
utils/save_and_load.py, `get_peft_model_state_dict`, which holds the whole model's state dict while it chooses.

Known limits:
    An adapter alone, or a whole model of whose tensors every one is contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping

from memplan.dtypes import DType
from memplan.estimate import Component, Phase
from memplan.quantization.bitsandbytes import CODE_BOOK_ELEMENTS_8BIT
from memplan.step.recording import Recording
from memplan.step.site import Site
from memplan.step.tensor import Storage, Tape


def record_saving(sites: Mapping[str, Site]) -> Recording:
    """The phase of saving, after a step."""
    tape = Tape()
    tape.enter(Phase.SAVE)
    held: list[Storage] = []
    for path, site in sites.items():
        if site.quantized is not None and site.quantized.double_quant:
            tape.module = path
            held.append(tape.alloc((CODE_BOOK_ELEMENTS_8BIT,), DType.FLOAT32, "clone", Component.QUANTIZATION_STATE))
    while held:
        del held[0]
    return Recording(tape.infos, tape.segments, frozenset(), frozenset(), (), Phase.SAVE)
