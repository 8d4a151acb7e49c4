"""Links from a page to a file or a folder of the repository lead to a page of the site with its text or its listing."""

from __future__ import annotations

import os
import posixpath
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

SHOWN = (".py", ".toml", ".sh", ".css", ".js")
"""Text that is shown on a page; other files, such as records in JSON, are downloads."""


def setup(app: Sphinx) -> dict[str, Any]:
    # Before the collector of downloads, which would copy the files.
    app.connect("doctree-read", _take_links, priority=100)
    app.connect("env-purge-doc", _forget)
    app.connect("env-merge-info", _merge)
    app.connect("html-collect-pages", _pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _linked(env: BuildEnvironment) -> dict[str, set[str]]:
    """The files and folders that each page links to, as paths from the root of the repository."""
    if not hasattr(env, "attnres_linked"):
        env.attnres_linked = {}  # type: ignore[attr-defined]
    return env.attnres_linked  # type: ignore[attr-defined,no-any-return]


def _forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    _linked(env).pop(docname, None)


def _merge(app: Sphinx, env: BuildEnvironment, docnames: list[str], other: BuildEnvironment) -> None:
    _linked(env).update({name: _linked(other)[name] for name in docnames if name in _linked(other)})


def _take_links(app: Sphinx, doctree: nodes.document) -> None:
    """Put an ordinary link in the place of every link to a file that is shown, or to a folder."""
    docname = app.env.docname
    here = posixpath.dirname(docname)
    for node in [*doctree.findall(addnodes.download_reference), *doctree.findall(addnodes.pending_xref)]:
        if node.get("reftype") != "myst" or node.get("refdomain") == "doc":
            continue
        path = posixpath.normpath(posixpath.join(here, node["reftarget"].partition("#")[0]))
        there = Path(app.srcdir) / path
        if there.is_dir() or (there.is_file() and there.suffix in SHOWN):
            _linked(app.env).setdefault(docname, set()).add(path)
            link = nodes.reference("", "", *node.children, internal=True, classes=["source-file"])
            link["refuri"] = posixpath.relpath(f"{_page(path)}.html", here or ".")
            node.replace_self(link)


def _page(path: str) -> str:
    return f"source/{path}"


def _pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """A page for every file and folder that is linked, and for every file of such a folder."""
    root = Path(app.srcdir)
    tracked = _tracked(root)
    todo = sorted(set().union(*_linked(app.env).values()))
    done: set[str] = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        if (root / path).is_dir():
            inside = _inside(path, tracked)
            todo += [one for one in inside if (root / one).is_dir() or Path(one).suffix in SHOWN]
            body = _listing(path, inside, root)
        else:
            body = _text(root / path)
        context = {"title": path, "body": f"<h1><code>{path}</code></h1>\n{body}", "display_toc": False}
        yield _page(path), context, "page.html"


def _tracked(root: Path) -> list[str]:
    """Files of the repository; without git, all that a build of Python does not make."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if name]
    found = (path for top in ("attnres_compile", "passes", "kernels", "docs") for path in (root / top).rglob("*"))
    return [path.relative_to(root).as_posix() for path in found if path.is_file() and "__pycache__" not in path.parts]


def _inside(folder: str, tracked: list[str]) -> list[str]:
    """What is directly in a folder."""
    below = [name[len(folder) + 1 :] for name in tracked if name.startswith(f"{folder}/")]
    return sorted({f"{folder}/{name.partition('/')[0]}" for name in below})


def _listing(folder: str, inside: list[str], root: Path) -> str:
    rows = []
    for path in inside:
        name = posixpath.basename(path)
        shown = (root / path).is_dir() or Path(path).suffix in SHOWN
        link = os.path.relpath(f"{_page(path)}.html", posixpath.dirname(_page(folder)))
        rows.append(f'<li><a href="{link}"><code>{name}</code></a></li>' if shown else f"<li><code>{name}</code></li>")
    return f"<ul>\n{chr(10).join(rows)}\n</ul>"


def _text(path: Path) -> str:
    formatter = HtmlFormatter(linenos="inline", lineanchors="L", anchorlinenos=True, wrapcode=True)
    return str(highlight(path.read_text(), get_lexer_for_filename(path.name), formatter))
