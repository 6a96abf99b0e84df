"""The page of measured records: predicted against measured. Runs in a computing process."""

from __future__ import annotations

from markupsafe import Markup

from memplan.evidence.plot import scatter
from memplan.evidence.records import record_files
from memplan.evidence.render import not_scored_reasons, percent, table_rows, worst_first
from memplan.evidence.scoring import score
from memplan.web.pages.rendering import render

_WORST_SHOWN = 20


def records_html(root: str) -> str:
    """Every point of the plot as a row."""
    scored = worst_first(score(engine="both", committed=True).scored)
    return str(render("records.html", scored=scored, percent=percent, root=root))


def accuracy_html(root: str) -> str:
    """Plot, summaries, the largest errors, and what has no score."""
    scores = score(engine="both", committed=True)
    groups = [(by, *table_rows(scores, by)) for by in (None, "method", "family", "gpu", "precision")]
    return str(
        render(
            "accuracy.html",
            plot=Markup(scatter(scores.scored)),
            scores=scores,
            groups=groups,
            worst=worst_first(scores.scored)[:_WORST_SHOWN],
            missing=not_scored_reasons(scores.not_scored),
            files=record_files(),
            percent=percent,
            root=root,
        )
    )
