"""What listeners are told: tasks that begin, count, and end, whatever happens in them."""

from __future__ import annotations

import pytest

from attnres_compile.progress import advance, each, heard_by, stage, task


class Listener:
    """Keeps what was under way at every change."""

    def __init__(self):
        self.seen = []

    def changed(self, tasks):
        self.seen.append([(one.text, one.stage, one.done, one.total) for one in tasks])


def test_tasks_stages_and_steps():
    listener = Listener()
    with heard_by(listener), task("all"):
        stage("first")
        stage("first")
        for _ in each("ab", "letter"):
            stage("reading")
        with task("counted", total=1):
            advance()
    assert listener.seen == [
        [("all", "", 0, None)],
        [("all", "first", 0, None)],
        [("all", "", 0, None), ("letter", "", 0, 2)],
        [("all", "", 0, None), ("letter", "reading", 0, 2)],
        [("all", "", 0, None), ("letter", "reading", 1, 2)],
        [("all", "", 0, None), ("letter", "reading", 2, 2)],
        [("all", "", 0, None)],
        [("all", "", 0, None), ("counted", "", 0, 1)],
        [("all", "", 0, None), ("counted", "", 1, 1)],
        [("all", "", 0, None)],
        [],
    ]


def test_without_a_listener_nothing_happens():
    with task("all"):
        stage("first")
        advance()
        assert list(each([1, 2], "number")) == [1, 2]


def test_nothing_is_told_outside_of_the_block_or_of_a_task():
    listener = Listener()
    with heard_by(listener):
        stage("of no task")
        advance()
    with task("behind"):
        pass
    assert listener.seen == []


def test_a_loop_that_is_left_by_an_error_ends_with_what_is_around_it_and_nothing_else():
    """Its generator may be closed much later, in the middle of another task."""
    listener = Listener()
    with heard_by(listener), task("all"):
        letters = each("abc", "letter")

        def fail():
            with task("outer"):
                next(letters)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert listener.seen[-1] == [("all", "", 0, None)]
        with task("next"):
            letters.close()
            assert [text for text, *_ in listener.seen[-1]] == ["all", "next"]
