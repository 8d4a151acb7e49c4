"""What comes out of a recording: files, tables, pictures, and the command that draws."""

from __future__ import annotations

import builtins
import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import attnres_compile as ac
from attnres_compile.cli import main as cli
from attnres_compile.model.errors import RecordingError
from attnres_compile.recording.recorded import RecordedRead, RecordedWrite, Sublayer
from attnres_compile.recording.table import CSV_COLUMNS
from tests.end_to_end.models import PreNorm, tokens


def read(module: str, before: Sublayer, state: int, *weights: float, stream: str = "h") -> RecordedRead:
    block = len(weights) - 1
    return RecordedRead(stream, module, "model.py:7", before, state, block, state % 2 == 1, 10, weights, 0.5, 2.0)


def write(module: str, sublayer: Sublayer, index: int, norm: float | None, stream: str = "h") -> RecordedWrite:
    backwards = 0 if norm is None else 4
    return RecordedWrite(stream, module, "model.py:9", sublayer, index, (index + 1) // 2, 10, 1.5, 2.5, norm, backwards)


RECORDING = ac.DepthWeights(
    "Model",
    ("h", "encoder"),
    (
        read("h.0.ln_2", Sublayer.CHANNEL, 1, 0.75, 0.25),
        read("h.1.ln_1", Sublayer.MIXER, 2, 0.5, 0.5),
        read("h.1.ln_2", Sublayer.CHANNEL, 3, 0.2, 0.3, 0.5),
        read("ln_f", Sublayer.OUTPUT, 4, 0.1, 0.2, 0.7),
        read("norm", Sublayer.UNKNOWN, 1, 0.4, 0.6, stream="encoder"),
    ),
    (
        write("h.0.attn", Sublayer.MIXER, 1, 0.5),
        write("h.0.mlp", Sublayer.CHANNEL, 2, 0.25),
        write("h.1.attn", Sublayer.MIXER, 3, 0.125),
        write("h.1.mlp", Sublayer.CHANNEL, 4, 0.0),
        write("layer", Sublayer.UNKNOWN, 1, None, stream="encoder"),
        write("layer", Sublayer.UNKNOWN, 2, None, stream="encoder"),
    ),
)

TABLE = """\
stream h of Model: 10 tokens, 4 backward passes

read in    before     root    b1      b2      entropy    magnitude
---------  ---------  ------  ------  ------  ---------  -----------
h.0.ln_2   mlp        0.750   0.250*          0.500      2
h.1.ln_1   attention  0.500   0.500           0.500      2
h.1.ln_2   mlp        0.200   0.300   0.500*  0.500      2
ln_f       output     0.100   0.200   0.700   0.500      2
(* the open block)

write of    sublayer    block    output magnitude    block magnitude    gradient norm
----------  ----------  -------  ------------------  -----------------  ---------------
h.0.attn    attention   1        1.5                 2.5                0.5
h.0.mlp     mlp         1        1.5                 2.5                0.25
h.1.attn    attention   2        1.5                 2.5                0.125
h.1.mlp     mlp         2        1.5                 2.5                0

stream encoder of Model: 10 tokens, 0 backward passes

read in    before    root    b1      entropy    magnitude
---------  --------  ------  ------  ---------  -----------
norm       unknown   0.400   0.600*  0.500      2
(* the open block)

write of    sublayer    block    output magnitude    block magnitude    gradient norm
----------  ----------  -------  ------------------  -----------------  ---------------
layer       unknown     1        1.5                 2.5                n/a
layer       unknown     1        1.5                 2.5                n/a"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "weights.json"
    RECORDING.save(path)
    return path


def test_table() -> None:
    assert str(RECORDING) == TABLE


def test_what_is_saved_is_loaded(saved: Path) -> None:
    assert ac.DepthWeights.load(saved) == RECORDING
    assert json.loads(saved.read_text())["schema_version"] == 1


def test_a_running_recording_is_saved_as_it_is_read(tmp_path: Path) -> None:
    model = PreNorm()
    ac.prepare(model, (tokens(),), inner="eager")
    model.compile(backend="attnres")
    with ac.depth_weights(model) as w:
        model(tokens()).sum().backward()
        w.save(tmp_path / "weights.json")
        loaded = ac.DepthWeights.load(tmp_path / "weights.json")
        assert loaded == w.result()
    assert loaded.reads == w.reads
    assert str(loaded) == str(w)
    assert "/" not in "".join(one.source for one in (*w.reads, *w.writes)), "no path of this machine"


def test_csv_has_one_number_per_line(tmp_path: Path) -> None:
    text = RECORDING.to_csv(tmp_path / "weights.csv")
    assert (tmp_path / "weights.csv").read_text() == text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert tuple(rows[0]) == CSV_COLUMNS
    weights: dict[str, list[float]] = {}
    for row in rows:
        if row["quantity"] == "weight":
            assert int(row["source"]) == len(weights.setdefault(row["module"], []))
            weights[row["module"]].append(float(row["value"]))
    assert list(map(tuple, weights.values())) == [one.weights for one in RECORDING.reads]
    of_first = [(row["quantity"], row["value"]) for row in rows if row["module"] == "h.0.attn"]
    assert of_first == [("output_magnitude", "1.5"), ("block_magnitude", "2.5"), ("gradient_norm", "0.5")]
    assert not [row for row in rows if row["module"] == "layer" and row["quantity"] == "gradient_norm"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_command_draws(saved: Path, tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / f"weights.{ending}"
    assert cli.main(["plot", str(saved), "-o", str(picture)]) == 0
    if ending == "svg":
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")
        return
    image = pytest.importorskip("PIL.Image").open(picture).convert("RGB")
    assert min(image.size) > 500
    assert len(image.getcolors(maxcolors=1 << 24)) > 50


def test_picture_has_reads_before_attentions_and_before_mlps_apart() -> None:
    pytest.importorskip("matplotlib")
    figure = RECORDING.plot()
    axes = [axis for axis in figure.get_axes() if axis.get_title()]
    found = {}
    for axis in axes:
        if axis.images:
            grid = torch.tensor(axis.images[0].get_array().filled(float("nan")))
            names = [label.get_text() for label in axis.get_yticklabels()]
            found[axis.get_title()] = {
                name: [round(value, 3) for value in row if value == value]
                for name, row in zip(names, grid.tolist(), strict=True)
            }
    assert found == {
        "before attention": {"h.1.ln_1": [0.5, 0.5]},
        "before MLP": {"h.0.ln_2": [0.75, 0.25], "h.1.ln_2": [0.2, 0.3, 0.5]},
        "before the output": {"ln_f": [0.1, 0.2, 0.7]},
        "before other sublayers": {"norm": [0.4, 0.6]},
    }
    (norms,) = [axis for axis in axes if axis.get_title() == "gradient norm"]
    assert list(norms.lines[0].get_ydata()) == [0.5, 0.25, 0.125, 0.0]
    assert sum(axis.get_title().startswith("magnitude") for axis in axes) == 2


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return honest(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RecordingError, match=r"attnres-compile\[plot\]"):
        RECORDING.plot()


@pytest.mark.parametrize(
    ("content", "picture", "message"),
    [
        (None, "weights.png", "is not a readable record"),
        ("not json", "weights.png", "is not a readable record"),
        ('{"schema_version": 1}', "weights.png", "no recording of depth weights"),
        ('{"schema_version": 9, "content": "attnres depth weights"}', "weights.png", "schema 9"),
        ('{"schema_version": 1, "content": "attnres depth weights", "model": "M"}', "weights.png", "is damaged"),
        ("good", "weights.txt", "does not end like a picture"),
        ("good", "none/weights.png", "cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    content: str | None, picture: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.json"
    if content == "good":
        RECORDING.save(path)
    elif content is not None:
        path.write_text(content)
    assert cli.main(["plot", str(path), "-o", str(tmp_path / picture)]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / picture).exists()
