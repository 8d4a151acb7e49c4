"""`python -m kernels.benchmarks plot`."""

from __future__ import annotations

import json
import re

import pytest

from attnres_compile.measure.figures import figure_bytes
from kernels.benchmarks.against_peers.plot import kernels_figure
from kernels.benchmarks.against_peers.work import BLOCK, DIRECTIONS, FORWARD, OP
from tests.kernels.benchmarks.gpu_records import GPU, GRID, cell, kernel_record, model_record
from tests.kernels.benchmarks.kernel_jobs import benchmarks

pytest.importorskip("matplotlib")


def words_of(svg: str) -> str:
    return " ".join(re.findall(r">([^<>]*)</(?:text|tspan)>", svg))


def kernels() -> dict:
    cells = [cell(BLOCK, direction, GRID[0]) for direction in DIRECTIONS]
    spent = {name: cells[0][name] for name in ("level", "tokens", "width", "sources", "reads", "dtype", "direction")}
    return kernel_record([*cells, spent | {"tokens": 5, "skipped": "the budget of 9 s was spent"}])


def test_kernels_by_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kernels.json").write_text(json.dumps(kernels()))
    assert benchmarks(capsys, "plot", "kernels.json", "-o", "kernels.svg") == (0, "", "")
    svg = (tmp_path / "kernels.svg").read_text()
    words = words_of(svg)
    for word in (GPU, "block, forward, bfloat16", "block, backward, bfloat16", "goal 85%", "goal 75%"):
        assert word in words
    for name in ("kernels, direct", "peer", "naive, inductor", "T 8192", "d 2048", "n 2", "S 6"):
        assert name in words
    assert "away: unsupported, not installed: pip install" in words
    assert "block, forward: T 5, d 2048, n 2, S 6, bfloat16: the budget of 9 s was spent" in words
    assert "dc:date" not in svg
    assert svg == figure_bytes(kernels_figure(kernels()), "svg").decode()


def test_marks_are_where_the_record_says():
    """The share of the backward alone, and a line down to that of the ideal form's bytes."""
    upper, _ = kernels_figure(kernels()).subfigs
    forward, backward = upper.axes
    for axes, share, goal in ((forward, 0.9, 0.85), (backward, 0.8, 0.75)):
        heights = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
        assert heights["kernels, direct"] == share
        assert heights["peer"] == 0.5
        assert heights[f"goal {goal:.0%}"] == goal
        (segment,) = axes.collections[0].get_segments()
        assert segment[:, 1] == pytest.approx([0.9 * share, share])


def test_a_picture_of_the_interpreter_says_so():
    record = kernel_record([cell(OP, FORWARD, GRID[0])], interpreter=True)
    words = words_of(figure_bytes(kernels_figure(record), "svg").decode())
    assert "Toy GPU in Triton's interpreter: not to be quoted" in words


@pytest.mark.parametrize(
    ("record", "target", "message"),
    [
        ({"kind": "bench offline"}, "a.svg", "its kind is 'bench offline'): pass what `python -m kernels.benchmarks "),
        (model_record(), "a.svg", "a record of models to `attnres bench show` or `attnres plot`"),
        ([1], "a.svg", "its kind is None"),
        ({"kind": "bench kernels", "schema_version": 9}, "a.svg", "with schema_version 1: measure again"),
        (kernel_record([]), "a.svg", "nothing was measured in this record"),
        (kernels(), "a.txt", "'txt' is not a form of these pictures: use one of svg, png"),
        (kernels(), "none/a.svg", "cannot be written"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, record, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(record))
    code, out, err = benchmarks(capsys, "plot", "record.json", "-o", target)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / target).exists()
