"""Puts each known fault into the store of a rank and shows by how much the comparison sees it.

    OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo python -m tests.pipeline.negative_controls

Exits with 1 if a fault goes unseen.
"""

from __future__ import annotations

import sys

from tests.pipeline.cases import CASES
from tests.pipeline.test_processes import SEEN, of


def main() -> int:
    unseen = 0
    for case in CASES[2]:
        if case.sabotage:
            errors = {name: max(result[name] for result in of(case, 2)) for name in ("loss", "gradient", "parameter")}
            unseen += max(errors.values()) <= SEEN
            print(f"{case.sabotage:18}", "  ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    return int(unseen > 0)


if __name__ == "__main__":
    sys.exit(main())
