"""The part of faq.md: how many of its questions are answered by yes, by subject."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from parts import part

PAGE = Path(__file__).resolve().parents[1] / "faq.md"
QUESTION = re.compile(r"^### (?P<question>.+)\n\n\*\*(?P<answer>Yes|No|In part)\b", re.MULTILINE)


@part
def answers() -> str:
    subjects = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    counts = Counter(found["answer"] for text in subjects for found in QUESTION.finditer(text))
    lines = [
        f"{sum(counts.values())} questions: {counts['Yes']} yes, {counts['In part']} in part, {counts['No']} no.",
        "",
    ]
    for text in subjects:
        name, found = text.partition("\n")[0], list(QUESTION.finditer(text))
        lines.append(f"- [{name}](#{_anchor(name)})")
        lines += [f"  - [{one['question']}](#{_anchor(one['question'])}) {one['answer']}." for one in found]
    return "\n".join([*lines, ""])


def _anchor(heading: str) -> str:
    """As repositories make it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
