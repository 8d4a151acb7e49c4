"""Rewrite the generated parts of the pages in this folder, and the pictures, from what the compiler prints today.

A part begins with `<!-- generated: NAME -->` and ends with `<!-- end -->`; the function NAME in the file of the folder
`parts` that is named after the page makes it. A picture is a file of the folder `pictures`, made by the function of its
name in `parts/inspection.py`, or one of those that a record of the folder `benchmarks` has in `parts/kernels.py`.

python docs/regenerate.py            # rewrites them
python docs/regenerate.py --check    # writes nothing; exits with 1 and shows the difference if one is stale
python docs/regenerate.py --overhead [PRESET ..]    # first counts the overhead of presets anew, which takes minutes
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from overhead_records import count_overhead, published
from parts import PARTS, PICTURE_SETS, PICTURES

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(?P<open><!-- generated: (?P<name>\S+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)


def regenerated(page: Path) -> str:
    """The text of a page with its generated parts made anew."""
    parts = PARTS[page.stem]
    return PART.sub(lambda found: f"{found['open']}{parts[found['name']]()}{found['close']}", page.read_text())


def made_anew() -> Iterator[tuple[Path, str]]:
    """Every page and every picture, with what it should hold."""
    for page in sorted(DOCS.glob("*.md")):
        if (DOCS / "parts" / f"{page.stem}.py").exists():
            importlib.import_module(f"parts.{page.stem}")
        yield page, regenerated(page)
    for name, draw in PICTURES.items():
        yield DOCS / "pictures" / f"{name}.svg", draw()
    for name, picture in (drawn for draw in PICTURE_SETS for drawn in draw().items()):
        yield DOCS / "pictures" / f"{name}.svg", picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 if a page or a picture is out of date"
    )
    parser.add_argument("--overhead", nargs="*", metavar="PRESET", help="count these anew first (default all)")
    arguments = parser.parse_args()
    if arguments.overhead is not None:
        count_overhead(arguments.overhead or published())
    stale = False
    for path, new in made_anew():
        old = path.read_text() if path.exists() else ""
        if old == new:
            continue
        stale = True
        if arguments.check:
            names = f"{path.name} as it is", "regenerated"
            print("\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm="")))
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(new)
            print(f"rewrote {path.name}")
    return int(stale and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
