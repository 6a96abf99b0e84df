from __future__ import annotations

import pytest

from memplan.errors import UnavailableError
from memplan.trace import versions


def test_installed_versions_are_tested() -> None:
    versions.check(bitsandbytes=True)


@pytest.mark.parametrize(
    ("found", "refused"), [("2.10.1", True), ("2.11.0", False), ("2.14.0+cu130", False), ("2.15.0", True)]
)
def test_others_are_refused_with_the_range(monkeypatch: pytest.MonkeyPatch, found: str, refused: bool) -> None:
    real = versions.version
    monkeypatch.setattr(versions, "version", lambda package: found if package == "torch" else real(package))
    if not refused:
        versions.check(bitsandbytes=False)
        return
    with pytest.raises(UnavailableError, match=r"torch >= 2\.11, < 2\.15") as caught:
        versions.check(bitsandbytes=False)
    assert caught.value.code == "untested_version"
    assert caught.value.exit_code == 4


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> str:
        raise versions.PackageNotFoundError(package)

    monkeypatch.setattr(versions, "version", missing)
    with pytest.raises(UnavailableError, match="needs torch"):
        versions.check(bitsandbytes=False)
