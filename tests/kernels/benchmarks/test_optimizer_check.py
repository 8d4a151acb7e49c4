"""The cost of the optimizer check: both lines are printed, and the marks around the check are taken off again."""

from __future__ import annotations

import re
import subprocess
import sys


def test_both_lines_are_printed() -> None:
    """In a process of its own: where the check is watching already, it comes before both marks."""
    words = ["-m", "kernels.benchmarks.optimizer_check", "--steps", "5", "--sublayers", "2"]
    found = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(\d+) parameters: check [0-9.]+ us", found) == ["16", "20"], found
