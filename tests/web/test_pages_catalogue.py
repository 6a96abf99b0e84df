"""What memplan knows, as pages: every row is there, with the numbers of the catalogue."""

from __future__ import annotations

import html
import re

from starlette.testclient import TestClient

from memplan.cards import card_ids, load_card
from memplan.catalog.gpus import list_gpus
from memplan.classic import classic_accounting
from memplan.evidence.scoring import score
from memplan.inventory import stored_bytes
from memplan.methods import list_methods
from memplan.optimizers.catalog import optimizer_rows
from memplan.recipe import Precision
from memplan.web.pages.accuracy import accuracy_html, records_html


def _text(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))


def test_every_model_is_listed_and_shown(client: TestClient) -> None:
    page = client.get("/models").text
    for card_id in card_ids():
        assert f'<a href="/models/{card_id}">' in page
        assert f"{load_card(card_id).parameters:,}" in page
    card = load_card("mistralai/Mistral-7B-v0.1")
    alone = client.get(f"/models/{card.id}").text
    for name, size in stored_bytes(card.id):
        assert name in alone
        assert f"{size:,}" in alone
    assert f'href="/?model={card.id}"' in alone
    assert client.get("/models/mistral-7b-v0.1").status_code == 200


def test_every_gpu_is_listed_with_its_sources(client: TestClient) -> None:
    page = client.get("/gpus").text
    text = _text(page)
    for gpu in list_gpus():
        assert f'<tr id="{gpu.id}"' in page
        assert f"{gpu.usable_bytes:,}" in text
        for source in gpu.sources:
            assert re.sub(r"\s+", " ", source) in text


def test_methods_precisions_and_optimizers(client: TestClient) -> None:
    page = client.get("/methods").text
    for method in list_methods():
        assert f"<code>{method.name}</code>" in page
    for name in optimizer_rows():
        assert f"<code>{name}</code>" in page
    cells = re.findall(r'<code>([\w-]+)</code></th>((?:<td class="n">(?:<b>)?\d+(?:</b>)?</td>){4})', page)
    totals = {name: [int(number) for number in re.findall(r">(\d+)<", row)] for name, row in cells}
    assert totals == {
        Precision.FP32: [4, 4, 8, 16],
        Precision.AMP: [4, 4, 8, 16],
        Precision.PURE: [2, 2, 4, 8],
        Precision.MASTER: [2, 2, 12, 16],
        Precision.MASTER_FP32_GRADS: [2, 4, 12, 18],
    }
    for row in classic_accounting().rows:
        assert f"{row.classic_bytes / 1e9:.1f} GB" in page


def test_the_accuracy_page_holds_what_scoring_says() -> None:
    page = accuracy_html("/below")
    scores = score(engine="both", committed=True)
    assert page.count("<circle") >= len(scores.scored)
    assert f"Of {len(scores.judged)} verdicts, <strong>{scores.wrong_fits}</strong>" in page
    text = _text(page)
    for entry in sorted(scores.scored, key=lambda row: -abs(row.error))[:5]:
        assert entry.record.id in text
        assert f"{100 * entry.error:+.2f} %" in text


def test_every_point_of_the_plot_is_a_row() -> None:
    """What the plot's text promises."""
    page, scores = accuracy_html("/below"), score(engine="both", committed=True)
    assert 'href="/below/accuracy/records"' in page
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", records_html("/below"), re.S)
    points = re.findall(r"<circle[^>]*><title>(.*?)</title>", page)
    assert len(rows) == len(points) == len(scores.scored)
    said = sorted(html.unescape(", ".join(re.findall(r">([^<]+)<", f">{row}<"))) for row in rows)
    assert said == sorted(
        f"{entry.record.id}, {entry.source}, {entry.level}, {entry.engine}, {entry.measured_bytes:,}, "
        f"{entry.predicted_bytes:,}, {100 * entry.error:+.2f} %"
        for entry in scores.scored
    )
