"""`attnres plot` of records of `attnres bench model`."""

from __future__ import annotations

import json
import re
import sys

import pytest

from attnres_compile.cli import output
from attnres_compile.measure.compile_time import PREFILL, TRAINING
from attnres_compile.measure.model import DECODE
from attnres_compile.measure.model_plot import model_figure
from attnres_compile.models.errors import MissingExtraError
from tests.attnres_compile.cli.command_line import attnres
from tests.kernels.benchmarks.gpu_records import kernel_record, model_cell, model_record

pytest.importorskip("matplotlib")


def words_of(svg: str) -> str:
    return " ".join(re.findall(r">([^<>]*)</(?:text|tspan)>", svg))


def models() -> dict:
    away = {"workload": DECODE, "schedule": "naive", "missing": "out of memory: tried 20 GiB"}
    return model_record(cells=[model_cell(PREFILL, 1.01), model_cell(TRAINING, 1.034, "direct"), away])


def test_models_by_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(models()))
    for picture_name in ("model.svg", "model.png"):
        assert attnres(capsys, "plot", "model.json", "-o", picture_name) == (0, "", "")
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")
    words = words_of((tmp_path / "model.svg").read_text())
    for word in ("gpt2-2048, input_ids [4, 2048], bfloat16", "training step", "direct", "+3.40 %", "goal +2 %"):
        assert word in words
    assert "decode step, naive: out of memory: tried 20 GiB" in words


def test_an_interval_is_drawn_as_far_as_it_reaches():
    upper, _ = model_figure(models()).subfigs
    prefill, training = upper.axes
    (segment,) = training.containers[0].lines[2][0].get_segments()
    assert segment[:, 1] == pytest.approx([3.2, 3.6])
    assert prefill.containers[0].lines[0].get_ydata() == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("record", "target", "message"),
    [
        (
            {"kind": "other"},
            "a.svg",
            "its kind is 'other'): pass what w.save(FILE) or `attnres bench model --json FILE`",
        ),
        (
            {"kind": "bench offline"},
            "a.svg",
            "its kind is 'bench offline'), which the repository reads and not the installed package: run `python -m "
            "kernels.benchmarks plot record.json` at its root",
        ),
        ([1], "a.svg", "its kind is None"),
        (kernel_record([]), "a.svg", "run `python -m kernels.benchmarks plot record.json` at its root"),
        ({"kind": "bench model", "schema_version": 9}, "a.svg", "with schema_version 1 or 2: measure again"),
        (model_record(cells=[]), "a.svg", "nothing was measured in this record"),
        (models(), "a.txt", "'txt' is not a form of these pictures: use one of svg, png"),
        (models(), "none/a.svg", "cannot be written"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, monkeypatch, record, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(record))
    code, out, err = attnres(capsys, "plot", "record.json", "-o", target)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / target).exists()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"attnres-compile\[plot\]"):
        model_figure(models())


def test_a_record_is_put_in_place_whole(tmp_path, monkeypatch):
    """Killed while it writes, a run keeps the record of the cell before."""
    path = tmp_path / "record.json"
    output.keep_record({"cells": [1]}, str(path))

    def die(text: str, target: str) -> None:
        with open(target, "w") as file:
            file.write(text[:5])
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        output.keep_record({"cells": [1, 2]}, str(path))
    assert json.loads(path.read_text()) == {"cells": [1]}
