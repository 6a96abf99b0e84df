"""What `memplan check` says: frozen shapes with stable JSON keys; every size is an int of bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from memplan.budget.config import Level, Severity
from memplan.estimate import ComponentBytes, Peak

SCHEMA_VERSION = 1


class Status(StrEnum):
    """Where a check stands, best first."""

    WITHIN = "within"
    UNCERTAIN = "uncertain"
    GREW = "grew"
    OVER = "over"
    ERROR = "error"

    @property
    def rank(self) -> int:
        """0 for the best."""
        return list(Status).index(self)


class Outcome(StrEnum):
    """What becomes of a check: its status under its `severity` and `on_uncertain`."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"
    ERROR = "error"


class LimitKind(StrEnum):
    """What limits a run."""

    BUDGET = "budget"
    GPU = "gpu"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limit(_Model):
    """A budget or a GPU, judged.

    Attributes:
        gpu: the card's id; of a budget the card that kernels and context are taken from.
        margin: what lies between expected and upper bound, in words.
        said: the setting as the budget file has it.
        place: its file and line; empty where the recipe names the GPU.
    """

    kind: LimitKind
    gpu: str | None
    level: Level
    limit_bytes: int
    expected_bytes: int
    upper_bytes: int
    status: Status
    margin: str
    said: str
    place: str


class KeyChange(_Model):
    """A recipe key that differs; None stands for a key that is not said. Keys in objects have dots: `peft.r`."""

    key: str
    before: Any
    after: Any


class Attribution(_Model):
    """What keys did to the device peak.

    Attributes:
        changes: one key, or several that only make a recipe together.
        in_order_bytes: the change of the peak when they are applied after those listed before; these sum to the whole.
        alone_bytes: when they alone are applied to the recipe before; None where that is no recipe or is not covered.
    """

    changes: tuple[KeyChange, ...]
    in_order_bytes: int
    alone_bytes: int | None


class ComponentChange(_Model):
    """One component of the device peak, before and after; `unsplit_blocks` is what lies between live and allocated."""

    component: str
    before_bytes: int
    after_bytes: int

    @property
    def change_bytes(self) -> int:
        """After less before."""
        return self.after_bytes - self.before_bytes


class Side(_Model):
    """One of two runs that are compared.

    Attributes:
        is_covered: whether the step was walked; else the peak is that of the model states alone, a lower bound.
    """

    label: str
    model: str
    recipe: dict[str, Any]
    peak: Peak
    is_covered: bool
    unsupported: tuple[str, ...] = ()


class Difference(_Model):
    """Why the peak of one run is not that of another.

    Attributes:
        components: at the two peaks, those of both levels beyond the allocator included; they sum to the device bytes.
        changed: recipe keys that were said differently.
        implied: values of the complete recipes that differ by default.
        attributions: by key, in the order of the recipe's keys; empty where nothing changed or it cannot be told.
        interaction_bytes: the whole change less the sum of what each did alone; None where one of them is not known.
        notes: what keeps the comparison from being exact.
    """

    schema_version: int = SCHEMA_VERSION
    before: Side
    after: Side
    change_bytes: int
    components: tuple[ComponentChange, ...]
    changed: tuple[KeyChange, ...]
    implied: tuple[KeyChange, ...]
    attributions: tuple[Attribution, ...]
    interaction_bytes: int | None
    notes: tuple[str, ...] = ()

    def to_json(self, *, indent: int | None = 2) -> str:
        """The public JSON form."""
        return self.model_dump_json(indent=indent)


class Growth(_Model):
    """A check against its base.

    Attributes:
        base: `compared`, `new` (the base has no such check), `failed` (it cannot be estimated there), or `none` (no base).
        limit_bytes: what `max_increase` allows; None where nothing is said, or there is nothing to compare with.
        status: None where nothing is judged.
        is_known: whether the difference is that of two covered steps, or of two equal runs.
        note: why it was not compared; may be empty.
        why: None where nothing was compared.
    """

    base: str
    level: Level
    before_bytes: int | None = None
    after_bytes: int | None = None
    limit_bytes: int | None = None
    status: Status | None = None
    is_known: bool = False
    note: str = ""
    why: Difference | None = None
    place: str = ""
    said: str = ""

    @property
    def change_bytes(self) -> int | None:
        """After less before; None where nothing was compared."""
        if self.before_bytes is None or self.after_bytes is None:
            return None
        return self.after_bytes - self.before_bytes


class Problem(_Model):
    """Why a check could not be judged, with the exit code of its kind."""

    code: str
    message: str
    hint: str
    exit_code: int


class Suggestion(_Model):
    """The least painful change that fits, from the planner, re-estimated in full."""

    title: str
    sets: dict[str, Any]
    expected_bytes: int
    upper_bytes: int


class CheckResult(_Model):
    """One check, judged.

    Attributes:
        place: file and line of the check.
        files: what was read for it.
        summary: of the run, in a few words.
        severity: as configured.
        reasons: a sentence for each limit that is not kept, with the line to change.
        message: of the budget file, for whoever is over.
    """

    name: str
    place: str
    files: tuple[str, ...]
    model: str
    summary: str
    severity: Severity
    status: Status
    outcome: Outcome
    reasons: tuple[str, ...]
    message: str
    limits: tuple[Limit, ...]
    growth: Growth
    level: Level
    expected_bytes: int | None
    peak: Peak | None
    components: tuple[ComponentBytes, ...]
    unsupported: tuple[str, ...]
    suggestion: Suggestion | None
    problem: Problem | None


class BaseRef(_Model):
    """The commit that was compared with."""

    ref: str
    commit: str


class CheckReport(_Model):
    """All checks of a budget file.

    Attributes:
        verdict: `pass`, `warn` (reported, not failing), `over` (or grew too much), `uncertain` (and asked to fail on it), or
            `error`.
        exit_code: 0 pass or warn, 1 over, 2 wrong input, 3 uncertain, 4 something could not be reached.
        config: the budget file.
        notes: about the whole run.
    """

    schema_version: int = SCHEMA_VERSION
    memplan_version: str
    verdict: str
    exit_code: int
    config: str
    base: BaseRef | None
    checks: tuple[CheckResult, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed; warnings pass."""
        return self.exit_code == 0

    def to_json(self, *, indent: int | None = 2) -> str:
        """The public JSON form."""
        return self.model_dump_json(indent=indent)

    def to_markdown(self) -> str:
        """A comment for a pull request."""
        from memplan.budget.formats.markdown import check_markdown

        return check_markdown(self)

    def to_text(self) -> str:
        """Plain text."""
        from memplan.budget.formats.text import check_report
        from memplan.report.plain import to_text

        return to_text(check_report(self))
