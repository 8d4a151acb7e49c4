"""Docstrings of the public names as reStructuredText: fields of classes, and errors that lead to their sections."""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

FIELDS = re.compile(r"^(?P<names>[a-z_]+(?:, [a-z_]+)*): (?P<text>\S.*)$")
SECTIONS = re.compile(r"^(Args|Returns|Raises|Yields):$")
ERROR = re.compile(r"(?<![`\w.])(?P<name>[A-Z]\w*Error)\b(?!`)")
SECTION = re.compile(r"^## (\w+Error)$", re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    # Before napoleon, which takes the sections apart.
    app.connect("autodoc-process-docstring", _rewritten, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _rewritten(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    page = (app.srcdir / "docs" / "errors.md").read_text()
    known = set(SECTION.findall(page))
    made = _with_code_marked(lines)
    made = _raises_in_words(_fields_as_attributes(made) if what in ("class", "exception") else made)
    lines[:] = [ERROR.sub(lambda found: _linked(found["name"], known), line) for line in made]


def _linked(name: str, known: set[str]) -> str:
    return f"`{name} <errors.html#{name.lower()}>`__" if name in known else name


def _with_code_marked(lines: list[str]) -> list[str]:
    """Code that is set in by four spaces, before any section, as a literal block."""
    made: list[str] = []
    for number, line in enumerate(lines):
        if SECTIONS.match(line):
            return [*made, *lines[number:]]
        begins = line.startswith("    ") and number > 1 and not lines[number - 1].strip()
        if begins and not lines[number - 2].startswith("    "):
            made += ["::", ""]
        made.append(line)
    return made


def _fields_as_attributes(lines: list[str]) -> list[str]:
    """``name: what it is`` in the docstring of a class, before any section, as a list of its fields."""
    made: list[str] = []
    was_field = False
    for number, line in enumerate(lines):
        if SECTIONS.match(line):
            return [*made, *lines[number:]]
        found = FIELDS.match(line)
        if found is not None:
            names = ", ".join(f"``{name}``" for name in found["names"].split(", "))
            made += ([] if was_field or not made or not made[-1] else [""]) + [f"* {names}: {found['text']}"]
            was_field = True
        elif was_field and line.strip():
            made.append(f"  {line.strip()}")
        else:
            was_field = False
            made.append(line)
    return made


def _raises_in_words(lines: list[str]) -> list[str]:
    """A section ``Raises:`` that lists errors in a sentence, which napoleon would take for the name of one."""
    for number, line in enumerate(lines):
        if line == "Raises:":
            stop = next((k for k in range(number + 1, len(lines)) if lines[k][:1].strip()), len(lines))
            section = [one.strip() for one in lines[number + 1 : stop]]
            if not all(re.match(r"^\w+: ", one) for one in _at_first_indent(lines[number + 1 : stop])):
                return [*lines[:number], "**Raises**", *section, "", *lines[stop:]]
    return lines


def _at_first_indent(lines: list[str]) -> list[str]:
    """The lines that begin an entry, without those that go on with one."""
    indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
    return [line.strip() for line in lines if line.strip() and len(line) - len(line.lstrip()) == indent]
