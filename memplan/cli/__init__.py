"""The command line: `memplan estimate | trace | explain | models | gpus | methods | optimizers | accuracy | serve`."""

from __future__ import annotations

import gc


def main() -> None:
    """Entry point of the `memplan` script."""
    # One answer takes less memory than a collection is worth the time.
    gc.disable()
    from memplan.cli.app import app

    app()


__all__ = ["main"]
