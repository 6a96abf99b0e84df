"""What a stretch of a recording changes, summed once: its net change and the moments within that can be its highest.

Known limits:
    A segment is known by its identity, so sums go with the recordings that they are of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memplan.step.forms import Form, Terms, highest
from memplan.step.tensor import Segment, StorageInfo


@dataclass(frozen=True, slots=True)
class Profile:
    """A segment's events summed: net change, and the moments within that can be its highest, with their event."""

    change: Form
    highest: tuple[tuple[Form, int], ...]


class Sums:
    """What walks over the same recordings have in common, whatever stays beside them.

    Attributes:
        terms: the sizes that storages are made of.
        recorded_sizes: of each term, as it was recorded.
    """

    def __init__(self, infos: Sequence[StorageInfo]) -> None:
        self._infos = infos
        self.terms = Terms(infos)
        self.recorded_sizes = self.terms.recorded()
        self._profiles: dict[tuple[int, frozenset[int]], Profile] = {}  # by the segment
        self._courses: dict[object, Profile] = {}  # by what it does

    def profile(self, segment: Segment, skipped: frozenset[int]) -> Profile:
        """A segment's events summed, those of `skipped` storages left out: a recording's workspaces, or none."""
        key = id(segment), skipped
        known = self._profiles.get(key)
        if known is not None:
            return known
        # Layers of one kind change the same terms in the same order.
        of = self.terms.of
        course = tuple(
            [
                (of[~event], -int(~event not in skipped)) if event < 0 else (of[event], int(event not in skipped))
                for event in segment.events
            ]
        )
        known = self._courses.get(course)
        if known is not None:
            self._profiles[key] = known
            return known
        height: Form = {}
        tops: list[tuple[Form, int]] = []
        rising = -1  # the last allocation since a free
        for position, event in enumerate(segment.events):
            if event < 0:
                if ~event in skipped:
                    continue
                if rising >= 0:
                    tops.append((dict(height), rising))
                    rising = -1
                self.terms.add(height, ~event, -1)
            elif event not in skipped and self._infos[event].size_bytes:
                self.terms.add(height, event, 1)
                rising = position
        if rising >= 0:
            tops.append((dict(height), rising))
        kept = highest((form for form, _ in tops), self.recorded_sizes)
        profile = Profile(height, tuple(tops[position] for position in kept))
        self._profiles[key] = self._courses[course] = profile
        return profile
