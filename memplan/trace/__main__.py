"""`python -m memplan.trace SPEC.json [--events] [--json]`: trace a spec and print what happened."""

from __future__ import annotations

from memplan.trace.cli import main

raise SystemExit(main())
