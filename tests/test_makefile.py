"""The targets of the Makefile: ``make`` alone lists each, and the demo's run what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*words: str) -> str:
    # Where make itself runs the tests, another one says which directory it enters and leaves.
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_make_alone_lists_every_target() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    listed = dict(re.findall(r"^  make (\S+) +(\S.*)$", make(), re.MULTILINE))
    assert sorted(listed) == sorted(phony)
    assert {"demo", "demo-full", "test", "check"} <= set(listed)


@pytest.mark.parametrize(("target", "words"), [("demo", "examples/demo.py"), ("demo-full", "examples/demo.py --full")])
def test_the_demo_and_the_long_one(target: str, words: str) -> None:
    commands = make("--dry-run", target).splitlines()
    assert commands[-1].split(maxsplit=1)[1] == words
