"""Puts each known fault into the store of a rank and shows by how much the comparison sees it.

    python -m tests.attnres_compile.pipelines.negative_controls

Exits with 1 if a fault goes unseen.
"""

from __future__ import annotations

import sys

from tests.attnres_compile.pipelines.cases import CASES, SABOTAGES
from tests.attnres_compile.pipelines.test_processes import SEEN, results


def main() -> int:
    unseen = 0
    ranks = results(2, ",".join(SABOTAGES))
    for case in CASES[2]:
        if case.sabotage:
            errors = {
                name: max(found[str(case)][name] for found in ranks) for name in ("loss", "gradient", "parameter")
            }
            unseen += max(errors.values()) <= SEEN
            print(f"{case.sabotage:18}", "  ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
