"""Embedding modules that are not looked up the usual way: read as a whole, or only there to be shared.

Symbols: N rows, H width.
"""

from __future__ import annotations

from memplan.architecture import Module, ModuleKind, Parameter
from memplan.step.modules import ModuleTape
from memplan.step.tensor import Tensor


def table(t: ModuleTape, name: str, rows: int, width: int, *, class_name: str = "Embedding") -> Tensor:
    """The weight [N, H] of an `nn.Embedding` itself; nothing is looked up and nothing allocated."""
    path = t.join(name)
    if t.declaring:
        parameters = (Parameter("weight", (rows, width)),)
        t.declare(Module(path, ModuleKind.EMBEDDING, parameters, rows, width, class_name))
    return t.parameter(path, "weight", (rows, width))
