"""GaLore and APOLLO: Adam on gradients projected to a low rank (galore-torch 1.0, apollo-torch 1.0.3).

The parameters that `optim_target_modules` names hold their moments at low rank, and a projection; all
others hold ordinary Adam (or Adafactor) states.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

from memplan.dtypes import DType
from memplan.errors import InvalidValueError, UnsupportedError
from memplan.optimizers.adafactor import adafactor_state, compute_dtype
from memplan.optimizers.base import SCALAR, LayoutKey, Optimizer, ParamInfo, StateTensor, StepTemporaries
from memplan.optimizers.bitsandbytes import BitsAndBytes
from memplan.optimizers.options import as_positive_int, as_target_modules
from memplan.optimizers.temporaries import StepScope, TensorGroup

LOW_RANK = "low_rank"
PROJECTION_TYPES = ("std", "reverse_std", "left", "right", "full")


def as_projection_type(key: str, value: object) -> str:
    """GaLore's `proj_type`.

    Raises:
        InvalidValueError: not one of them.
    """
    if not isinstance(value, str) or value not in PROJECTION_TYPES:
        raise InvalidValueError(key, value, "one of " + ", ".join(PROJECTION_TYPES))
    return value


def as_projection(key: str, value: object) -> str:
    """APOLLO's `proj`.

    Raises:
        InvalidValueError: not one of them.
    """
    if not isinstance(value, str) or value not in ("random", "svd"):
        raise InvalidValueError(key, value, "one of random, svd")
    return value


def as_scale_type(key: str, value: object) -> str:
    """APOLLO's `scale_type`.

    Raises:
        InvalidValueError: not one of them.
    """
    if not isinstance(value, str) or value not in ("channel", "tensor"):
        raise InvalidValueError(key, value, "one of channel, tensor")
    return value


@lru_cache(maxsize=8192)
def module_is_targeted(target_modules: str | tuple[str, ...], module_name: str) -> bool:
    """Whether `optim_target_modules` names the module: full regular expression, equal name, or part of the name.

    Source: `check_target_module_exists`, transformers/trainer_utils.py, and "all-linear" in
    `_setup_low_rank_optimizer`, transformers/trainer_optimizer.py, transformers 5.23.

    Raises:
        InvalidValueError: a string that is not a regular expression.
    """
    try:
        if isinstance(target_modules, str):
            if target_modules.replace("_", "-") == "all-linear":
                return True
            return re.fullmatch(target_modules, module_name) is not None
        if any(target in module_name for target in target_modules):
            return True
        return any(re.fullmatch(target, module_name) is not None for target in target_modules)
    except re.error as error:
        raise InvalidValueError("optim_target_modules", target_modules, f"not a regular expression: {error}") from None


@dataclass(frozen=True)
class LowRank(Optimizer):
    """What GaLore and APOLLO share: which parameters are projected, and to what.

    Source: transformers/trainer_optimizer.py, `_setup_low_rank_optimizer` (only `nn.Linear` weights are
    projected), transformers 5.23; galore_torch/galore_projector.py, `GaLoreProjector`, galore-torch 1.0;
    apollo_torch/random_projector.py, `GradientProjector`, apollo-torch 1.0.3.

    Attributes:
        optim_target_modules: a list of (parts of) module names, a regular expression, or "all-linear".
        rank: rank of the projection.
        proj_type: which side is projected; `std` takes the larger.
        update_proj_gap: steps between two computations of the projection.
    """

    optim_target_modules: str | tuple[str, ...] = ()
    rank: int = 128
    proj_type: str = "std"
    update_proj_gap: int = 200

    reads_names: ClassVar[bool] = True

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        "optim_target_modules": as_target_modules,
        "rank": as_positive_int,
        "proj_type": as_projection_type,
        "update_proj_gap": as_positive_int,
    }

    def __post_init__(self) -> None:
        if not self.optim_target_modules:
            raise InvalidValueError(
                "optim_target_modules",
                None,
                f"{self.name} needs it",
                hint='a list of module names, a regular expression, or "all-linear"',
            )

    @property
    def step_temporaries(self) -> StepTemporaries:
        """Unknown: cuSOLVER's workspace for `torch.linalg.svd` is in no source that states it in bytes."""
        return "unknown"

    def variant(self, param: ParamInfo) -> str:
        """`low_rank` for weights of targeted `nn.Linear` modules."""
        module_name = param.name.removesuffix(".weight")
        linear = param.is_linear
        if linear is None:
            linear = len(param.shape) == 2 and not param.is_embedding and module_name != param.name
        return LOW_RANK if linear and module_is_targeted(self.optim_target_modules, module_name) else ""

    def check_parameters(self, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """At least one parameter must be projected.

        Raises:
            InvalidValueError: `optim_target_modules` matches nothing.
        """
        if not any(self.variant(param) for group in groups for param in group):
            raise InvalidValueError(
                "optim_target_modules", self.optim_target_modules, "it matches the weight of no nn.Linear"
            )

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Refused.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            f"the temporaries of {self.name}'s step are not known",
            hint="it computes a singular value decomposition, whose cuSOLVER workspace no source gives in bytes",
        )

    def projects_columns(self, shape: tuple[int, ...]) -> bool:
        """Whether the gradient [m, n] becomes [m, rank] (right projection); else it becomes [rank, n]."""
        rows, columns = shape
        sides = {"right": True, "left": False, "std": rows >= columns, "reverse_std": rows < columns}
        return sides[self.proj_type]

    def low_rank_shape(self, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
        """Shape of the projected gradient, and of the moments."""
        if self.proj_type == "full":
            return (rank, rank)
        return (shape[0], rank) if self.projects_columns(shape) else (rank, shape[1])

    def check_projection_back(self, shape: tuple[int, ...]) -> None:
        """GaLore reads off the low-rank shape which side was projected; `reverse_std` can mislead it.

        Raises:
            UnsupportedError: it does, and the library's step raises.
        """
        rows, columns = shape
        if self.proj_type == "reverse_std" and rows < columns and self.rank >= rows:
            raise UnsupportedError(
                f"{self.name} fails on a {list(shape)} gradient with proj_type=reverse_std and rank={self.rank}",
                hint="galore_torch/galore_projector.py, project_back, takes the wrong side; take std or a lower rank",
            )

    def svd_projection(self, shape: tuple[int, ...], dtype: DType) -> tuple[StateTensor, ...]:
        """GaLore's orthogonal matrices for a gradient [m, n]: rank rows of Vh, or rank columns of U.

        For float32 gradients they are views and keep the whole factor alive (`Vh[:rank, :]` of
        [min(m, n), n], `U[:, :rank]` of [m, min(m, n)]); for 16-bit gradients the cast makes a copy.
        """
        rows, columns = shape
        smaller = min(shape)
        rank = min(self.rank, smaller)
        is_view = dtype == DType.FLOAT32
        right = StateTensor("", (rank, columns), dtype, storage_elements=smaller * columns if is_view else None)
        left = StateTensor("", (rows, rank), dtype, storage_elements=smaller * rows if is_view else None)
        if self.proj_type == "full":
            return (
                left._replace(name="projector.ortho_matrix.0"),
                right._replace(name="projector.ortho_matrix.1"),
            )
        chosen = right if self.projects_columns(shape) else left
        return (chosen._replace(name="projector.ortho_matrix"),)


@dataclass(frozen=True)
class GaLoreAdamW(LowRank):
    """GaLore's AdamW: both moments at low rank in the gradient's dtype.

    Source: galore_torch/adamw.py, `AdamW.step`, galore-torch 1.0.
    """

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """projector.ortho_matrix for targets, then exp_avg and exp_avg_sq (the step is a Python int)."""
        shape = key.shape
        projection: tuple[StateTensor, ...] = ()
        if key.variant == LOW_RANK:
            self.check_projection_back(key.shape)
            projection = self.svd_projection(key.shape, key.dtype)
            shape = self.low_rank_shape(key.shape, min(self.rank, *key.shape))
        return (*projection, StateTensor("exp_avg", shape, key.dtype), StateTensor("exp_avg_sq", shape, key.dtype))


@dataclass(frozen=True)
class GaLoreAdamW8bit(GaLoreAdamW):
    """GaLore's AdamW on bitsandbytes' 8-bit states, of the low-rank gradient's size.

    Its call passes `percentile_clipping=100` in the place where bitsandbytes 0.50 takes `max_unorm`, so
    every parameter also gets a one-element `unorm_vec`. The Trainer's 32-bit override for embeddings
    does not reach it. Layer-wise, each parameter has its own optimizer and so its own code books.

    Source: galore_torch/adamw8bit.py, `AdamW8bit.__init__` and `step`, galore-torch 1.0;
    bitsandbytes/optim/optimizer.py, `Optimizer2State`, 0.50.
    """

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """projector.ortho_matrix for targets, then bitsandbytes' states and unorm_vec."""
        shape = key.shape
        projection: tuple[StateTensor, ...] = ()
        if key.variant == LOW_RANK:
            self.check_projection_back(key.shape)
            projection = self.svd_projection(key.shape, key.dtype)
            shape = self.low_rank_shape(key.shape, min(self.rank, *key.shape))
        states = BitsAndBytes(self.row, embeddings_32bit=False).layout(LayoutKey(shape, key.dtype))
        if self.updates_in_backward:
            states = tuple(tensor._replace(shared=False) for tensor in states)
        return (*projection, *states, StateTensor("unorm_vec", (1,), DType.FLOAT32))


@dataclass(frozen=True)
class GaLoreAdafactor(GaLoreAdamW):
    """GaLore's Adafactor: factored statistics of the low-rank gradient, in float32 for 16-bit parameters.

    16-bit gradients are cast up before the projection, so the projection is float32 (and a view) too.

    Source: galore_torch/adafactor.py, `Adafactor.step`, galore-torch 1.0.
    """

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """projector.ortho_matrix for targets, then Adafactor's statistics."""
        dtype = compute_dtype(key.dtype)
        shape = key.shape
        projection: tuple[StateTensor, ...] = ()
        if key.variant == LOW_RANK:
            self.check_projection_back(key.shape)
            projection = self.svd_projection(key.shape, dtype)
            shape = self.low_rank_shape(key.shape, min(self.rank, *key.shape))
        return (*projection, *adafactor_state(shape, dtype))


@dataclass(frozen=True)
class Apollo(LowRank):
    """APOLLO's AdamW: moments of a randomly projected gradient, and the norm of the last scaled one.

    Source: apollo_torch/apollo.py, `AdamW.step`; apollo_torch/random_projector.py,
    `GradientProjector.get_orthogonal_matrix`, apollo-torch 1.0.3.

    Attributes:
        proj: `random`, or `svd` as in GaLore.
        scale_type: `channel` or `tensor`.
    """

    proj: str = "random"
    scale_type: str = "channel"

    OPTIONS: ClassVar[Mapping[str, Callable[[str, object], object]]] = {
        **LowRank.OPTIONS,
        "proj": as_projection,
        "scale_type": as_scale_type,
    }

    def __post_init__(self) -> None:
        LowRank.__post_init__(self)
        if self.proj_type == "full":
            raise UnsupportedError(
                "APOLLO has no full projection",
                hint="apollo_torch/random_projector.py raises NotImplementedError for proj_type=full",
            )

    @property
    def step_temporaries(self) -> StepTemporaries:
        """A Python loop over parameters; unknown with `proj=svd`."""
        return "one_parameter_at_a_time" if self.proj == "random" else "unknown"

    def kept_rank(self, shape: tuple[int, ...]) -> int:
        """The rank in use: a random projection may be wider than the gradient, an SVD cannot."""
        return self.rank if self.proj == "random" else min(self.rank, *shape)

    def layout(self, key: LayoutKey) -> tuple[StateTensor, ...]:
        """projector.ortho_matrix for targets, exp_avg, exp_avg_sq, and scaled_grad (a norm, 0-d) for targets."""
        if key.variant != LOW_RANK:
            return (StateTensor("exp_avg", key.shape, key.dtype), StateTensor("exp_avg_sq", key.shape, key.dtype))
        self.check_channels(key.shape)
        shape = self.low_rank_shape(key.shape, self.kept_rank(key.shape))
        return (
            *self.projection(key.shape, key.dtype),
            StateTensor("exp_avg", shape, key.dtype),
            StateTensor("exp_avg_sq", shape, key.dtype),
            StateTensor("scaled_grad", SCALAR, key.dtype),
        )

    def check_channels(self, shape: tuple[int, ...]) -> None:
        """Norms are taken along the side that `std` projects; along the other they must broadcast to the gradient.

        Raises:
            UnsupportedError: they do not, and the library's step raises.
        """
        rows, columns = shape
        projects_columns = self.projects_columns(shape)
        if self.scale_type != "channel" or projects_columns == (rows >= columns):
            return
        if self.kept_rank(shape) not in (1, columns if projects_columns else rows):
            raise UnsupportedError(
                f"APOLLO cannot scale channels of a {list(shape)} gradient with proj_type={self.proj_type}",
                hint="apollo_torch/apollo.py, step: the norms do not broadcast to the gradient; take proj_type=std",
            )

    def projection(self, shape: tuple[int, ...], dtype: DType) -> tuple[StateTensor, ...]:
        """The projection matrix of a gradient [m, n]: [rank, n] or [m, rank]."""
        if self.proj == "svd":
            return self.svd_projection(shape, dtype)
        matrix = (self.rank, shape[1]) if self.projects_columns(shape) else (shape[0], self.rank)
        return (StateTensor("projector.ortho_matrix", matrix, dtype),)

    def record_step(self, scope: StepScope, groups: Sequence[Sequence[ParamInfo]]) -> None:
        """Targets come last: the Trainer puts them into the second of its two groups.

        Raises:
            UnsupportedError: with `proj=svd`.
        """
        if self.proj != "random":
            LowRank.record_step(self, scope, groups)
        params = [param for group in groups for param in group]
        for param in sorted(params, key=lambda param: bool(self.variant(param))):
            if self.variant(param):
                self.record_target(scope, param)
            else:
                self.record_other(scope, TensorGroup(param.elements, param.dtype))

    def record_other(self, scope: StepScope, full: TensorGroup) -> None:
        """Plain Adam: `denom` and `norm_grad`, each held into the next turn."""
        scope.release("grad")
        scope.bind("denom", full)
        scope.bind("norm_grad", full)

    def record_target(self, scope: StepScope, param: ParamInfo) -> None:
        """One turn for a projected parameter, at a step that draws a new projection."""
        dtype = param.dtype
        (matrix,) = self.projection(param.shape, dtype)
        projection_elements = matrix.shape[0] * matrix.shape[1]
        shape = self.low_rank_shape(param.shape, self.rank)
        full = TensorGroup(param.elements, dtype)
        low = TensorGroup(shape[0] * shape[1], dtype)
        scope.release("grad")
        if dtype.is_half:
            scope.bind("matrix", TensorGroup(param.elements, DType.FLOAT32))
        scope.bind("randn", TensorGroup(projection_elements, DType.FLOAT32))
        scope.bind("proj", TensorGroup(projection_elements, DType.FLOAT32))
        scope.release("randn")
        # The new projection replaces the old one in the state: of the two, one is a temporary here.
        if dtype.is_half:
            scope.bind("cast", TensorGroup(projection_elements, dtype))
        scope.release("proj", "matrix", "cast")
        scope.bind("grad", low)
        scope.bind("denom", low)
        scope.bind("norm_grad", low)
        if self.scale_type == "channel":
            channels = TensorGroup(shape[0] if param.shape[0] >= param.shape[1] else shape[1], dtype)
            scope.bind("numerator", channels)
            scope.bind("grad_norm", channels)
            scope.bind("grad_norm_eps", channels)
            scope.release("grad_norm")
            scope.bind("quotient", channels)
            scope.release("numerator", "grad_norm_eps")
            scope.rename("quotient", "grad_scaling_factor")
        scope.bind("scaled_grad", full)
        scope.bind("scaled_grad", full)  # scaled_grad / limiter
        # norm_grad = scaled_grad: two names, one tensor, until both are bound again.
        scope.release("norm_grad")
        scope.rename("scaled_grad", "norm_grad")
