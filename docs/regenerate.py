"""Rewrite the generated parts of the pages in this folder, and the pictures, from what the compiler prints today.

A part begins with `<!-- generated: NAME -->` and ends with `<!-- end -->`; the function NAME in the file of the folder
`parts` that is named after the page makes it. Parts named `printed` need none: they hold what the code before them
prints. A picture is a file of the folder `pictures`, made by the function of its name in `parts/inspection.py`, or one
of those that a record of the folder `benchmarks` has in `parts/kernels.py`. quickstart.ipynb is made of quickstart.md.

python docs/regenerate.py            # rewrites them
python docs/regenerate.py --check    # writes nothing; exits with 1 and shows the difference if one is stale
python docs/regenerate.py --only quickstart faq    # these pages alone, without pictures
python docs/regenerate.py --overhead [PRESET ..]    # first counts the overhead of presets anew, which takes minutes
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from overhead_records import count_overhead, published
from page_notebook import notebook_of
from page_runs import printed_by
from parts import PARTS, PICTURE_SETS, PICTURES
from parts.layout import fenced

from attnres_compile.cli.progress import progress_bar
from attnres_compile.progress import stage

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(?P<open><!-- generated: (?P<name>\S+) -->\n).*?(?P<close><!-- end -->)", re.DOTALL)
PRINTED = "<!-- generated: printed -->"
NOTEBOOK = "quickstart"


def regenerated(page: Path) -> str:
    """The text of a page with its generated parts made anew."""
    parts, text = PARTS[page.stem], page.read_text()
    if PRINTED in text and "printed" not in parts:
        stage(f"running {page.name}")
        printed = iter(printed_by(page))
        parts = {**parts, "printed": lambda: fenced(next(printed))}

    def made(found: re.Match[str]) -> str:
        stage(f"making {found['name']} of {page.name}")
        return f"{found['open']}{parts[found['name']]()}{found['close']}"

    return PART.sub(made, text)


def made_anew(only: Collection[str]) -> Iterator[tuple[Path, str]]:
    """Every page, picture and notebook, with what it should hold; or the pages of these names alone."""
    for page in sorted(DOCS.rglob("*.md")):
        if only and page.stem not in only:
            continue
        if (DOCS / "parts" / f"{page.stem}.py").exists():
            importlib.import_module(f"parts.{page.stem}")
        text = regenerated(page)
        yield page, text
        if page.stem == NOTEBOOK:
            yield page.with_suffix(".ipynb"), notebook_of(text)
    if only:
        return
    for name, draw in PICTURES.items():
        stage(f"drawing {name}")
        yield DOCS / "pictures" / f"{name}.svg", draw()
    for name, picture in (drawn for draw in PICTURE_SETS for drawn in draw().items()):
        yield DOCS / "pictures" / f"{name}.svg", picture


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing, exit with 1 if a page or a picture is out of date"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar, which only a terminal shows anyway")
    parser.add_argument("--only", nargs="+", default=[], metavar="PAGE", help="pages by name, without ending")
    parser.add_argument("--overhead", nargs="*", metavar="PRESET", help="count these anew first (default all)")
    arguments = parser.parse_args()
    with progress_bar("regenerating", arguments.quiet):
        if arguments.overhead is not None:
            count_overhead(arguments.overhead or published())
        changes = [
            change for path, new in made_anew(arguments.only) if (change := _changed(path, new, arguments.check))
        ]
    print("\n".join(changes), end="\n" if changes else "")
    return int(bool(changes) and arguments.check)


def _changed(path: Path, new: str, is_check: bool) -> str:
    """What there is to say of a page or a picture, which is written unless it is only checked; '' if it is current."""
    old = path.read_text() if path.exists() else ""
    if old == new:
        return ""
    if is_check:
        names = f"{path.name} as it is", "regenerated"
        return "\n".join(difflib.unified_diff(old.splitlines(), new.splitlines(), *names, lineterm=""))
    path.parent.mkdir(exist_ok=True)
    path.write_text(new)
    return f"rewrote {path.name}"


if __name__ == "__main__":
    sys.exit(main())
