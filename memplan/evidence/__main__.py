"""`python -m memplan.evidence table`: regenerate ACCURACY.md."""

from __future__ import annotations

import argparse

from memplan.evidence.accuracy import write_accuracy_page


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m memplan.evidence", description=__doc__)
    parser.add_argument("action", choices=("table",))
    parser.parse_args()
    write_accuracy_page()


if __name__ == "__main__":
    main()
