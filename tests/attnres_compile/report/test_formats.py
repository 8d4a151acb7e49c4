"""Every format of the report parses and says the same; two models' tables are kept in full."""

from __future__ import annotations

import csv
import io
import json
import sys
from functools import cache
from html.parser import HTMLParser
from importlib import resources
from xml.etree import ElementTree

import pytest
import torch

import attnres_compile
from attnres_compile.cli import main as cli
from attnres_compile.measure.overhead import overhead
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.block_sweep import BlockSweep, SweepPoint, sweep_blocks
from attnres_compile.report.pages.html import report_page, sweep_page
from attnres_compile.report.pages.sweep_plot import sweep_png, sweep_svg
from attnres_compile.report.quantities import percent, quantity
from attnres_compile.report.table import OverheadReport, OverheadRow
from tests.attnres_compile.report.models import PreNorm
from tests.golden_text import check_golden


@cache
def report_of(name: str) -> OverheadReport:
    loaded = load_model(name, LoadOptions(seq=64, dtype="bfloat16", weightless=True))
    return overhead(loaded.model, loaded.args, loaded.kwargs, name=name, pipeline=(2, 2), num_blocks=3)


@pytest.mark.parametrize("name", ["gpt2-tiny", "llama-tiny"])
def test_the_whole_table_is_as_accepted(name: str) -> None:
    check_golden(f"report/{name}", report_of(name).to_text(details=True))


def test_json_keeps_to_its_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("attnres_compile.report").joinpath("overhead.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(json.dumps(report_of("gpt2-tiny").to_dict()))
    jsonschema.validate(data, schema)
    for damage in ({"schema_version": 1}, {"rows": [data["rows"][0] | {"how": "guessed"}]}, {"kind": "plan"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data | damage, schema)


def test_a_kept_report_reads_back() -> None:
    data = json.loads(json.dumps(report_of("gpt2-tiny").to_dict()))
    assert OverheadReport.from_dict(data).to_dict() == data


def test_csv_and_json_have_the_same_exact_numbers() -> None:
    report = report_of("gpt2-tiny")
    rows = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(rows) == len(report.rows)
    for line, row in zip(rows, report.rows, strict=True):
        for name in ("plain", "attnres"):
            value = getattr(row, name)
            assert line[name] == "n/a" if value is None else float(line[name]) == value


def test_markdown_is_rendered_as_one_table() -> None:
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(report_of("gpt2-tiny").to_markdown())
    assert html.count("<table>") == 1
    assert html.count("<tr>") == 1 + len(report_of("gpt2-tiny").shown(details=False))


class Tags(HTMLParser):
    """Collects tags and what they refer to, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_the_page_is_whole_and_needs_no_network() -> None:
    tags = parsed(report_page(report_of("gpt2-tiny")))
    assert not tags.references
    assert "script" not in tags.seen
    assert tags.seen.count("tr") == len(report_of("gpt2-tiny").rows) + 2
    for row in report_of("gpt2-tiny").rows:
        assert row.metric in tags.text


def test_what_a_model_is_called_is_no_markup() -> None:
    row = OverheadRow("<b>", 1, 2, "", "exact", "a & b")
    page = report_page(OverheadReport("<script>alert(1)</script>", (row,)))
    assert "<script>" not in page
    assert "&lt;b&gt;" in page
    sweep = BlockSweep('"><script>', (SweepPoint(1, 2, 2, 1, None, 4.0, 4.0, 8, True),))
    assert "<script>" not in sweep_page(sweep)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (1_000, "B", "1.00 kB"),
        (9_995, "B", "10.0 kB"),
        (99_950, "B", "100 kB"),
        (999_499, "B", "999 kB"),
        (999_500, "B", "1.00 MB"),
        (28_240_000_000_000, "FLOP", "28.2 TFLOP"),
        (49_122_675_072, "", "49,122,675,072"),
        (1.5, "ms", "1.5 ms"),
        (None, "B", "n/a"),
    ],
)
def test_quantities(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_percents() -> None:
    shown = [percent(value) for value in (0, 0.0005, 0.05, 9.99, 57.8, 900)]
    assert shown == ["0 %", "+0.0005 %", "+0.05 %", "+9.99 %", "+57.8 %", "+900 %"]


# --- the sweep ---


@cache
def swept() -> BlockSweep:
    with torch.device("meta"):
        model, x = PreNorm(8, 12), torch.empty(1, 3, 8)
    return sweep_blocks(model, (x,), name="toy", num_blocks=3)


def test_a_sweep_goes_from_one_block_to_full() -> None:
    points = swept().points
    partitions = [(point.num_blocks, point.block_size) for point in points]
    assert partitions == [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)]
    assert [point.is_chosen for point in points] == [False, False, True, False, False, False]
    assert [point.sources for point in points] == [2, 3, 4, 5, 7, 13]
    assert [point.stored_bytes for point in points] == [32 * point.sources for point in points]
    assert all(point.parameters == 12 * 2 * 8 for point in points)


def test_a_point_of_the_sweep_is_the_report_under_its_options() -> None:
    with torch.device("meta"):
        model, x = PreNorm(8, 12), torch.empty(1, 3, 8)
    rows = {row.metric: row for row in overhead(model, (x,), block_size=2).rows}
    point = next(point for point in swept().points if point.block_size == 2)
    assert point.io_bytes == rows["residual I/O per token and sublayer"].attnres
    assert point.plain_io_bytes == rows["residual I/O per token and sublayer"].plain
    assert point.forward_flops == rows["forward FLOPs"].delta


def test_formats_of_a_sweep() -> None:
    rows = list(csv.DictReader(io.StringIO(swept().to_csv())))
    assert [int(row["num_blocks"]) for row in rows] == [1, 2, 3, 4, 6, 12]
    data = json.loads(json.dumps(swept().to_dict()))
    assert (data["schema_version"], len(data["points"])) == (1, 6)
    picture = ElementTree.fromstring(sweep_svg(swept()))
    circles = [node for node in picture.iter() if node.tag.endswith("circle")]
    assert len(circles) == 2 * 6
    assert sum("chosen" in node.attrib["class"] for node in circles) == 2
    assert "svg" in parsed(sweep_page(swept())).seen
    assert swept().to_markdown().startswith("|")


def test_png_needs_matplotlib_and_says_so(monkeypatch) -> None:
    from attnres_compile.models.errors import MissingExtraError

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"attnres-compile\[plot\]"):
        sweep_png(swept())


def test_png_by_matplotlib() -> None:
    pytest.importorskip("matplotlib")
    assert sweep_png(swept()).startswith(b"\x89PNG")


# --- the command ---


def attnres(capsys, *words: str) -> tuple[int, str, str]:
    code = cli.main(["report", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_published_block_size_is_taken_and_said(capsys, monkeypatch) -> None:
    import dataclasses

    from attnres_compile.models import source
    from attnres_compile.models.presets import PRESETS

    small = dataclasses.replace(PRESETS["gpt2-tiny"], rewrite={"block_size": 4}, capture_seq=16)
    monkeypatch.setattr(source, "PRESETS", PRESETS | {"gpt2-tiny": small})
    _, text, _ = attnres(capsys, "gpt2-tiny", "--seq", "64")
    assert "8 sublayers in 2 blocks of 4" in text
    assert "block_size=4 as this model was published with" in text
    assert "64 tokens, bfloat16" in text
    assert "counted at 16 tokens a row and scaled to 64" in text
    _, text, _ = attnres(capsys, "gpt2-tiny", "--seq", "16", "--full")
    assert "8 sublayers in 8 blocks of 1" in text
    assert "published" not in text
    assert "scaled" not in text


def test_the_output_names_the_format(capsys, tmp_path) -> None:
    path = tmp_path / "sweep.svg"
    code, out, _ = attnres(capsys, "gpt2-tiny", "--seq", "16", "--sweep", "blocks", "--blocks", "3", "-o", str(path))
    assert (code, out) == (0, "")
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


CONFIG_WITHOUT_CLASS = {"model_type": "clip_vision_model", "architectures": ["NoSuchModel"]}
NO_GUESS = """
import torch
from torch import nn

class Sound(nn.Module):
    main_input_name = "waveform"
    config = None

    def forward(self, waveform):
        return waveform

def sound():
    return Sound()
"""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama-3-70"], "'llama-3-70' is not a preset: did you mean llama-3-70b"),
        (["config.json"], "names the architecture NoSuchModel, which the installed transformers does not have"),
        (["sounds:sound"], "inputs of Sound cannot be guessed"),
        (["gpt2-tiny", "--seq", "9999"], "seq 9999 is longer than the model allows (max_position_embeddings=512)"),
        (["gpt2-tiny", "--format", "svg"], "svg is a plot, which only --sweep blocks has"),
        (["gpt2-tiny", "--sweep", "blocks", "--format", "png"], "png is no text: name a file with -o"),
        (["gpt2-tiny", "--sweep", "blocks", "--measure"], "--sweep counts and does not measure"),
        (["gpt2-tiny", "--virtual", "2"], "give their number with --stages"),
        (["gpt2-tiny", "--seq", "16", "--stages", "9"], "9"),
        (["gpt2-tiny", "--capture-seq", "0"], "capture_seq is 0: pass at least 1"),
        (["gpt2-tiny", "-o", "missing/report.html"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(capsys, tmp_path, monkeypatch, words, message) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_WITHOUT_CLASS))
    (tmp_path / "sounds.py").write_text(NO_GUESS)
    monkeypatch.chdir(tmp_path)
    code, out, err = attnres(capsys, *words)
    sys.modules.pop("sounds", None)
    assert (code, out) == (1, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("attnres: error: ")]) == 1
    assert "Traceback" not in err
    if "sounds:sound" in words:
        assert "name it as module:factory" in err


def test_report_and_sweep_leave_a_real_model_alone() -> None:
    model, x = PreNorm(8, 4), torch.randn(1, 3, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attnres_compile.overhead(model, (x,))
    sweep_blocks(model, (x,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_without_a_stream_costs_nothing_and_cannot_be_swept() -> None:
    from attnres_compile.model.errors import NoStreamError

    model, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    rows = {row.metric: row for row in overhead(model, (x,), on_decline="ignore").rows}
    assert rows["parameters"].delta == rows["forward FLOPs"].delta == 0
    assert rows["forward FLOPs"].plain == 2 * 2 * 4 * 4
    assert rows["residual I/O per token and sublayer"].note == "nothing was rewritten"
    with pytest.raises(NoStreamError):
        sweep_blocks(model, (x,), on_decline="ignore")


def test_a_model_without_data_cannot_be_timed() -> None:
    from attnres_compile.report.comparison import MeasureError

    with torch.device("meta"):
        model, x = PreNorm(8, 4), torch.empty(1, 3, 8)
    with pytest.raises(MeasureError, match="without data cannot be timed"):
        overhead(model, (x,), measure=True)
