"""What of the activations waits for backward in host memory, by who moves it there.

`checkpoints`: `activation_checkpointing_kwargs={"offload": True}` of transformers 5.23, which is torch's
`save_on_cpu(pin_memory=True)` around each checkpoint: it moves the arguments that a checkpoint keeps.
`hidden-states`: a checkpoint of its own that moves the layer's hidden states alone: LLaMA-Factory's `use_unsloth_gc`,
Unsloth's first offloaded checkpointing and axolotl's copy of it.
`saved-tensors`: `OffloadActivations` of TRL and torchtune, which moves whatever autograd saves, over a second CUDA stream.
"""

from __future__ import annotations

from memplan.errors import InvalidValueError
from memplan.filler import USER, Filler
from memplan.recipe import Offloading, Stack

# What the switch of that name does in a stack that has one.
_OWN = {
    Stack.TRL: (Offloading.SAVED_TENSORS, "SFTConfig.activation_offloading"),
    Stack.TORCHTUNE: (Offloading.SAVED_TENSORS, "torchtune's enable_activation_offloading"),
    Stack.UNSLOTH: (Offloading.HIDDEN_STATES, 'use_gradient_checkpointing="unsloth"'),
}


def fill_offloading(filler: Filler) -> None:
    """The key's value where anything is offloaded: one of the three.

    Raises:
        InvalidValueError: a variant that the recipe's checkpointing does not allow, or true where the stack has no switch.
    """
    key, stack = "activation_offloading", filler.values["stack"]
    said, source = filler.said.get(key), USER
    if said is None and key in filler.own:
        said, source = filler.own[key]
    if not said:
        return
    if said is not True:
        value = Offloading(said)
    else:
        if stack not in _OWN:
            raise InvalidValueError(
                key,
                said,
                f"a variant by its name under stack {stack}, which has no switch of that name: "
                "checkpoints, hidden-states or saved-tensors",
                hint="checkpoints is transformers' activation_checkpointing_kwargs={'offload': True}",
            )
        value, own = _OWN[stack]
        source = own if source is USER else source
    mode = filler.values["activation_checkpointing"]
    if value is not Offloading.SAVED_TENSORS and not mode:
        raise InvalidValueError(
            key,
            said,
            f"only beside activation_checkpointing: {value} moves what a checkpoint keeps",
            hint="say activation_checkpointing too",
        )
    if value is Offloading.HIDDEN_STATES and mode == "non-reentrant":
        raise InvalidValueError(
            key,
            said,
            f"only with activation_checkpointing true or reentrant: {value} is a checkpoint of its own, and reentrant",
        )
    filler.values[key], filler.sources[key] = value, source
