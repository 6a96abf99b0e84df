"""Where memplan keeps what belongs to this machine. Standard library alone: every command line looks here."""

from __future__ import annotations

import os
from pathlib import Path


def data_directory() -> Path:
    """`$MEMPLAN_DATA_DIR`, else `memplan` below the XDG data directory; it need not exist."""
    own = os.environ.get("MEMPLAN_DATA_DIR")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "memplan"


def profiles_directory() -> Path:
    """Profiles of this machine's cards (`memplan.profiles`)."""
    return data_directory() / "profiles"
