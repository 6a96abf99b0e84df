"""The command line: `memplan estimate | explain | models | gpus | methods | optimizers`."""

from __future__ import annotations


def main() -> None:
    """Entry point of the `memplan` script."""
    from memplan.cli.app import app

    app()


__all__ = ["main"]
