"""The bar of a command: on a terminal, and nowhere else; what it says; what is left of it."""

from __future__ import annotations

import os
import sys
import time

import pytest
import torch

import attnres_compile
from attnres_compile.cli import main as cli
from attnres_compile.cli import progress as bars
from attnres_compile.cli.progress import progress_bar
from attnres_compile.models.source import load_model
from attnres_compile.progress import each, stage, task
from kernels.benchmarks import command_line as benchmarks
from tests.attnres_compile.cli.command_line import attnres
from tests.attnres_compile.cli.terminal import standard_error_on_a_terminal

MODEL = "toys:pre_norm"
BENCH = ("bench", "model", MODEL, "--workload", "prefill", "--rounds", "2", "--inner", "eager")
COMMANDS = [
    pytest.param(
        ("inspect", MODEL),
        ["importing torch", "making the model", "capturing the model", "analysing", "rewriting", "describing"],
        id="inspect",
    ),
    pytest.param(
        ("verify", MODEL),
        ["capturing", "zero queries", "random queries against the definition, schedule=direct", "float64"],
        id="verify",
    ),
    pytest.param(
        ("report", MODEL),
        ["making the model", "counting the traffic of a schedule:  50%|", "executing the graphs"],
        id="report",
    ),
    pytest.param(("report", MODEL, "--sweep", "blocks"), ["partition 2/3 > counting", "partition:  67%|"], id="sweep"),
    pytest.param(
        ("report", MODEL, "--measure", "--rounds", "2", "--inner", "eager"),
        ["warm-up of plain, call 2 of 2", "compiling attnres", "measuring forward and training 2/2 > round:  50%|"],
        id="measure",
    ),
    pytest.param(
        BENCH,
        [
            "cell 1/1 > prefill, schedule auto: compiling plain",
            "cell 1/1 > prefill, schedule auto: eager compiles the rewritten graph",
            "cell 1/1 > prefill, schedule auto: warm-up of attnres, call 3 of 3",
            "cell 1/1 > prefill, schedule auto > round:  50%|",
        ],
        id="bench model",
    ),
    pytest.param(
        ("bench", "analysis", "--layers", "1", "2", "--rounds", "1"),
        ["the first compilation, which is not timed", "depth, round by round:  50%|"],
        id="bench analysis",
    ),
]


@pytest.mark.parametrize(("words", "said"), COMMANDS)
def test_a_terminal_is_told_what_a_command_does(capsys, in_directory, monkeypatch, words, said):
    with standard_error_on_a_terminal(monkeypatch) as terminal:
        assert cli.main(words) == 0
    name = " ".join(word for word in words[: words.index("--layers" if "--layers" in words else MODEL) + 1])
    name = name.removesuffix(" --layers")
    assert all(line.startswith(f"attnres {name}") for line in terminal.lines), terminal.lines
    # In this order.
    lines = iter(terminal.lines)
    for text in said:
        assert any(text in line for line in lines), f"{text!r} is not in\n" + "\n".join(terminal.lines)
    assert terminal.left == [], "the bar is taken away in the end"
    assert "attnres " not in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("words", [("inspect", MODEL), BENCH], ids=lambda words: words[0])
def test_what_is_no_terminal_is_told_nothing(capsys, in_directory, words):
    code, _, err = attnres(capsys, *words)
    assert (code, err) == (0, "")


@pytest.mark.parametrize("words", [("inspect", MODEL), BENCH], ids=lambda words: words[0])
def test_quiet_turns_it_off(capsys, in_directory, monkeypatch, words):
    with standard_error_on_a_terminal(monkeypatch) as terminal:
        assert cli.main([*words, "--quiet"]) == 0
    assert terminal.raw == ""
    assert capsys.readouterr().out


def test_every_verb_can_be_quiet():
    parsed = [
        cli.build_parser().parse_args([*words, "--quiet"])
        for words in (
            ("inspect", "m"),
            ("verify", "m"),
            ("report", "m"),
            ("plot", "f", "-o", "p"),
            ("bench", "model", "m"),
        )
    ]
    parsed += [benchmarks.build_parser().parse_args([verb, "--quiet"]) for verb in ("peers", "offline")]
    assert all(arguments.quiet for arguments in parsed)


def test_calls_from_python_are_silent(capsys, in_directory, monkeypatch):
    loaded = load_model(MODEL)
    with standard_error_on_a_terminal(monkeypatch) as terminal:
        attnres_compile.verify(loaded.model, loaded.args)
        attnres_compile.overhead(loaded.model, loaded.args, measure=True, rounds=1, inner="eager")
    assert terminal.raw == ""


def test_an_error_has_a_line_of_its_own(in_directory, monkeypatch):
    with standard_error_on_a_terminal(monkeypatch) as terminal:
        assert cli.main(["report", "toys:post_norm"]) == 1
    assert any("capturing" in line for line in terminal.lines)
    assert len(terminal.left) == 1
    assert terminal.left[0].startswith("attnres: error: ")


def test_what_is_printed_stands_above_the_bar(capsys, monkeypatch):
    with standard_error_on_a_terminal(monkeypatch) as terminal, progress_bar("a command"):
        for number in each(range(3), "step"):
            print(f"line {number} of a warning", file=sys.stderr)
            stage(f"doing {number}")
    assert terminal.left == [f"line {number} of a warning" for number in range(3)]
    assert any("a command > step: doing 2:  67%|" in line for line in terminal.lines)


def test_so_does_what_is_printed_to_standard_output_on_the_same_terminal(monkeypatch):
    with standard_error_on_a_terminal(monkeypatch) as terminal:
        monkeypatch.setattr("sys.stdout", os.fdopen(os.dup(sys.stderr.fileno()), "w"))
        with progress_bar("a command"):
            for number in each(range(3), "step"):
                print("row", number)
                print("an unfinished", end=" ")
                stage(f"doing {number}")
                print("line", file=sys.stderr)
        sys.stdout.close()
        monkeypatch.undo()
    assert terminal.left == [line for number in range(3) for line in (f"row {number}", "an unfinished line")]
    assert any("doing 2: 100%|" in line for line in terminal.lines)


def test_the_error_of_a_step_takes_the_bar_with_it(monkeypatch):
    def fail() -> None:
        for _ in each(range(3), "step"):
            raise ZeroDivisionError

    with standard_error_on_a_terminal(monkeypatch) as terminal:
        with progress_bar("a command"), pytest.raises(ZeroDivisionError):
            fail()
        assert sys.stderr.isatty()
    assert terminal.left == []


def test_a_narrow_terminal_keeps_to_its_line(monkeypatch):
    with standard_error_on_a_terminal(monkeypatch, columns=40) as terminal, progress_bar("a command"):
        stage("something that takes more words than there is room for on a line")
    assert max(map(len, terminal.lines)) <= 40


def test_the_clock_moves_but_not_while_something_is_timed(monkeypatch):
    monkeypatch.setattr(bars, "_SECONDS_BETWEEN_TICKS", 0.001)

    def draws(is_timed: bool) -> int:
        with (
            standard_error_on_a_terminal(monkeypatch) as terminal,
            progress_bar("a command"),
            task("work", is_timed=is_timed),
            task("inside"),
        ):
            until = time.monotonic() + (0.2 if is_timed else 60)
            while time.monotonic() < until and len(b"".join(terminal.chunks)) < 2000:
                time.sleep(0.01)
        return sum("inside" in line for line in terminal.lines)

    assert draws(is_timed=False) > 5
    assert draws(is_timed=True) == 1


def test_rounds_are_timed_with_nothing_beside_them(monkeypatch):
    from attnres_compile.measure.timing import compare
    from attnres_compile.progress import heard_by

    class Listener:
        timed = False

        def changed(self, tasks):
            self.timed = any(one.is_timed for one in tasks)

    listener, seen = Listener(), []
    with heard_by(listener), task("measuring"):
        compare(lambda: seen.append(listener.timed), lambda: torch.ones(1), rounds=3, warmup=1, sample_seconds=0)
    assert seen == [False, False, True, True, True], "the call that compiles, the one that counts, and three rounds"
