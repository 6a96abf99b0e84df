"""What the pages have computed in another process (`memplan.web.work`): each takes text and answers with HTML as bytes."""

from __future__ import annotations

from memplan.web.pages.keys import read_query
from memplan.web.tasks import Answer


def answer_html(query: str, root: str) -> Answer:
    """The answer to a recipe.

    Args:
        query: canonical query of the recipe.
        root: where a proxy mounts the service.

    Raises:
        MemplanError: as `memplan.estimate`, and for a model given as a path.
    """
    from memplan.web.pages.answer import answer_html as html

    text, fits = html(read_query(query.encode()).keys, root)
    return Answer(text.encode(), fits=fits)


def receipt_html(query: str, root: str) -> Answer:
    """Every line of the receipt; as `answer_html`."""
    from memplan.web.pages.answer import receipt_html as html

    return Answer(html(read_query(query.encode()).keys, root).encode())


def changes_html(query: str, root: str) -> Answer:
    """What would make it fit; as `answer_html`."""
    from memplan.web.pages.changes import changes_html as html

    return Answer(html(read_query(query.encode()).keys, root).encode())


def gpus_html(query: str, root: str) -> Answer:
    """The recipe on every GPU; as `answer_html`."""
    from memplan.web.pages.elsewhere import gpus_html as html

    return Answer(html(read_query(query.encode()).keys, root).encode())


def methods_html(query: str, root: str) -> Answer:
    """The recipe with every method; as `answer_html`."""
    from memplan.web.pages.elsewhere import methods_html as html

    return Answer(html(read_query(query.encode()).keys, root).encode())


def read_upload(text: str, name: str, state: str, max_query_bytes: int) -> Answer:
    """The query that a config file means; see `memplan.web.pages.upload`."""
    from memplan.web.pages.upload import read_upload as read

    return read(text, name, state, max_query_bytes)


def model_html(card_id: str, root: str) -> Answer:
    """One model card.

    Raises:
        ProblemError: there is no such card.
    """
    from memplan.web.pages.catalogue import model_html as html

    return Answer(html(card_id, root).encode())


def models_html(root: str) -> Answer:
    """Every model card."""
    from memplan.web.pages.catalogue import models_html as html

    return Answer(html(root).encode())


def gpu_catalogue_html(root: str) -> Answer:
    """Every GPU."""
    from memplan.web.pages.catalogue import gpus_html as html

    return Answer(html(root).encode())


def method_catalogue_html(root: str) -> Answer:
    """What is known of methods, precision policies and optimizers."""
    from memplan.web.pages.catalogue import methods_html as html

    return Answer(html(root).encode())


def records_html(root: str) -> Answer:
    """Every point of the accuracy plot as a row."""
    from memplan.web.pages.accuracy import records_html as html

    return Answer(html(root).encode())


def accuracy_html(root: str) -> Answer:
    """Predicted against measured, every record."""
    from memplan.web.pages.accuracy import accuracy_html as html

    return Answer(html(root).encode())
