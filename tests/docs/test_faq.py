"""docs/faq.md: every question has an answer, and a yes leads to where it is shown."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS

TEXT = (DOCS / "faq.md").read_text()
SECTIONS = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]


def test_every_question_is_answered_first_and_says_where_it_was_asked() -> None:
    wrong = [
        section.partition("\n")[0]
        for section in SECTIONS
        if not re.match(r".+\n\n\*\*(Yes|No|In part)\b", section)
        or not re.search(r"\n\*Asked (at|about) .+\.\*\n", section)
    ]
    assert not wrong
    assert len(SECTIONS) == 34


def test_a_yes_has_a_link() -> None:
    answered = [section for section in SECTIONS if re.search(r"\n\n\*\*Yes\b", section)]
    assert len(answered) >= 25
    assert not [section.partition("\n")[0] for section in answered if not re.search(r"\]\([^)]+\.md", section)]


def test_the_count_is_that_of_the_sections() -> None:
    counts = [sum(f"\n\n**{answer}" in section for section in SECTIONS) for answer in ("Yes", "In part", "No")]
    assert "{} questions: {} yes, {} in part, {} no.".format(len(SECTIONS), *counts) in TEXT
