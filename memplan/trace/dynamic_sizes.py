"""How many elements a mask selects, where the number depends on values that fakes do not have.

A rule exists only for call sites whose number follows from the code (a mask built with exactly so many ones, or a
mask that holds everywhere by construction). Every use is counted and reported; any other call site fails with its
name.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from memplan.errors import UnsupportedError

_aten = torch.ops.aten
Rule = Callable[[dict[str, Any], torch.Tensor], int]


def _everything(_locals: dict[str, Any], mask: torch.Tensor) -> int:
    return int(mask.numel())


def _off_diagonal(scope: dict[str, Any], _mask: torch.Tensor) -> int:
    return int(scope["in_dim"]) * (int(scope["in_dim"]) - 1)


# (file ending, function) -> number of selected elements, from the caller's local variables and the mask.
RULES: dict[tuple[str, str], Rule] = {
    # The mask is made with r * (in_features + out_features) ones; update_layer checks that it has as many.
    ("peft/tuners/shira/layer.py", "update_layer"): lambda scope, _mask: int(scope["num_shira_weight"]),
    # Indices are drawn inside the padded matrix, so that the bounds check holds for all.
    ("peft/tuners/waveft/layer.py", "get_delta_weight"): _everything,
    # Columns with a norm of zero are the exception.
    ("peft/tuners/frod/layer.py", "_calculate_frod_u_and_lambda"): _everything,
    # Entries of the shared vector that nothing refers to are the exception.
    ("peft/tuners/unilora/model.py", ""): _everything,
    ("peft/tuners/frod/model.py", "_init_frod_projections"): lambda scope, _mask: (
        scope["in_dim"] * (scope["in_dim"] - 1)
    ),
    # Type masks are positive for every token; the loss selects among prompt and input tokens.
    ("peft/peft_model.py", "_cpt_forward"): _everything,
    ("peft/tuners/cpt/model.py", "calculate_loss"): _everything,
    # Tokens that are not padding: all of them, as the upper bound.
    ("transformers/modeling_flash_attention_utils.py", "_get_unpad_data"): _everything,
    ("transformers/modeling_flash_attention_utils.py", "_unpad_input"): _everything,
    # Positions that have a label: all of them, as the upper bound.
    ("trl/trainer/utils.py", "_fused_forward"): _everything,
    ("torch/autograd/graph.py", "_engine_run_backward"): _everything,
    # Virtual tokens whose delta is still zero are the exception; CPU masks of a few tokens.
    ("peft/tuners/cpt/model.py", "get_projection"): _everything,
    ("peft/tuners/cpt/model.py", "get_epsilon"): _everything,
}


class DynamicSizes:
    """Resolves ops with a data-dependent output shape by `rules`; `counted` says how often, by call site."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.rules: dict[tuple[str, str], Rule] = dict(RULES)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The op with its dynamic size filled in.

        Raises:
            UnsupportedError: nothing is known about the call site.
        """
        if func is _aten.nonzero.default:
            return torch.empty((self._count(func, args[0]), args[0].dim()), dtype=torch.int64, device=args[0].device)
        if func is _aten.bincount.default:
            length = int(args[2] if len(args) > 2 else kwargs.get("minlength", 0))
            if length:
                # bincount returns at least `minlength` entries; callers that give it stay below it.
                return torch.empty(length, dtype=torch.int64, device=args[0].device)
        if func is _aten._unique2.default:
            # Distinct label types of one sequence in CPT's loss: the input's own.
            count = min(self._count(func, args[0]), 1)
            return tuple(torch.empty(size, dtype=torch.int64, device=args[0].device) for size in (count, 0, 0))
        if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
            values = args[2] if len(args) > 2 else None
            if func is _aten.index_put_.default and values is not None and values.dim() == 0:
                # A mask and one value: masked_fill_ on a GPU, in place.
                return args[0]
            indices: list[Any] = []
            for index in args[1]:
                if index is None or index.dtype not in (torch.bool, torch.uint8):
                    indices.append(index)
                    continue
                if values is not None and values.dim() > 0 and values.shape[0] > 1:
                    count = int(values.shape[0])
                else:
                    count = self._count(func, index)
                indices += [torch.empty(count, dtype=torch.int64, device=index.device) for _ in range(index.dim())]
            return func(args[0], indices, *args[2:], **kwargs)
        raise _unknown(func, "no rule for this op")

    def _count(self, func: Any, mask: torch.Tensor) -> int:
        frame: Any = sys._getframe(1)
        seen = ""
        while frame is not None:
            path = frame.f_code.co_filename.replace("\\", "/")
            function = frame.f_code.co_name
            for (ending, name), rule in self.rules.items():
                if path.endswith(ending) and name in ("", function):
                    self.counted[f"{ending}:{function}"] += 1
                    return rule(frame.f_locals, mask)
            if not seen and "/torch/" not in path and "memplan/trace" not in path:
                seen = f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
            frame = frame.f_back
        raise _unknown(func, seen or "unknown place")


def _unknown(func: Any, where: str) -> UnsupportedError:
    return UnsupportedError(
        f"the output size of {func} depends on values ({where})",
        hint="a trace knows shapes only; measure this one on a GPU",
        code="data_dependent_shape",
    )
