"""What a step records for all numbers that take the same course, whatever stays beside it: shared between optimizers.

Symbols: B micro batch, S sequence length, T target length of encoder-decoder models.
"""

from __future__ import annotations

from collections.abc import Iterable

from memplan.step.forms import guard
from memplan.step.host_copies import host_bytes
from memplan.step.recording import Recording
from memplan.step.replay import Written
from memplan.step.settings import StepSettings
from memplan.step.sums import Sums


class Course:
    """The recordings of a step with all that follows from them alone.

    Args:
        recordings: of a step's micro-steps, and of what happens beside them.
        conditions: what B, S and T were compared with, as expressions that held.

    Attributes:
        sums: for walks over them.
        written: for the allocator.
    """

    def __init__(self, recordings: tuple[Recording, ...], conditions: Iterable[str]) -> None:
        self.recordings = recordings
        self.sums = Sums(recordings[0].infos)
        self.written = Written(self.sums.terms)
        self._holds = guard(conditions)
        self._evaluate = self.sums.terms.evaluate()
        self._copies = recordings[0].host_copies

    def sizes(self, settings: StepSettings) -> tuple[int, ...] | None:
        """The size of every term for the numbers in `settings`; None where the step would take another course."""
        numbers = (settings.batch, settings.sequence, settings.target_sequence)
        if not self._holds(*numbers):
            return None
        found = self._evaluate(*numbers)
        return found if min(found) > 0 else None

    def host_copies_bytes(self, settings: StepSettings) -> int:
        """Host memory of activations that wait for backward there, for the numbers in `settings`."""
        if not self._copies:
            return 0
        return host_bytes(self._copies)(settings.batch, settings.sequence, settings.target_sequence)
