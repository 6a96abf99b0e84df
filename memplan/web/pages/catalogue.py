"""What memplan knows, as pages: models, GPUs, methods. Runs in a computing process."""

from __future__ import annotations

from memplan.cards import card_ids, load_card
from memplan.catalog.gpus import list_gpus
from memplan.classic import classic_accounting
from memplan.dtypes import DType
from memplan.inventory import state_bytes, stored_bytes
from memplan.methods import list_methods
from memplan.optimizers import ParamInfo, get_optimizer
from memplan.optimizers.catalog import optimizer_rows
from memplan.precision import policy_of
from memplan.recipe import Precision
from memplan.web.pages.rendering import render
from memplan.web.recipes import card_of

_WHO = {
    Precision.FP32: "plain PyTorch",
    Precision.AMP: "Trainer with bf16 or fp16 on a model loaded in float32",
    Precision.PURE: "a model loaded in 16 bits with a plain optimizer",
    Precision.MASTER: "Apex O2, DeepSpeed: the classic 2 + 2 + (4 + 8)",
    Precision.MASTER_FP32_GRADS: "Megatron, DeepSpeed with float32 accumulation",
}
_SAMPLE_ELEMENTS = 2**24


def models_html(root: str) -> str:
    """Every model card with the bytes of its weights."""
    return str(render("models.html", cards=[load_card(card_id) for card_id in card_ids()], root=root))


def model_html(card_id: str, root: str) -> str:
    """One model card in full.

    Raises:
        ProblemError: there is no such card.
    """
    card = card_of(card_id)
    return str(render("model.html", card=card, stored=stored_bytes(card.id), root=root))


def gpus_html(root: str) -> str:
    """Every GPU with every reading."""
    return str(render("gpus.html", gpus=list_gpus(), root=root))


def methods_html(root: str) -> str:
    """Methods, precision policies, the classic accounting, optimizers."""
    states = [(row, state_bytes(row.name)) for row in optimizer_rows().values()]
    return str(
        render(
            "methods.html",
            methods=list_methods(),
            policies=[(precision, *_policy_bytes(precision), _WHO[precision]) for precision in Precision],
            classic=classic_accounting(),
            optimizers=states,
            root=root,
        )
    )


def _policy_bytes(precision: Precision) -> tuple[int, int, int]:
    """Bytes of a trained parameter with AdamW: weights, gradients, states with the master copy."""
    policy = policy_of(precision)
    dtype = DType.FLOAT32 if precision in (Precision.FP32, Precision.AMP) else DType.BFLOAT16
    sample = ParamInfo((_SAMPLE_ELEMENTS,), policy.state_dtype(dtype), "weight", False, True)
    states = get_optimizer("adamw_torch").state_bytes({sample: 1}).device_unrounded_bytes // _SAMPLE_ELEMENTS
    gradients = policy.gradient_dtype(dtype).itemsize_bytes
    return dtype.itemsize_bytes, gradients, states + policy.master_bytes(dtype)
