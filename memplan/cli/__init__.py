"""The command line: `memplan estimate | trace | explain | models | gpus | methods | optimizers | accuracy | serve`."""

from __future__ import annotations

import gc
import sys

from memplan.local_data import profiles_directory


def main() -> None:
    """Entry point of the `memplan` script."""
    # One answer takes less memory than a collection is worth the time.
    gc.disable()
    # A service answers for other people's cards.
    if sys.argv[1:2] != ["serve"] and profiles_directory().is_dir():
        _use_profiles()
    from memplan.cli.app import app

    app()


def _use_profiles() -> None:
    from memplan.cli.output import write_error
    from memplan.errors import MemplanError
    from memplan.profiles import use_local

    try:
        use_local()
    except MemplanError as error:
        write_error(error)
        sys.exit(error.exit_code)


__all__ = ["main"]
