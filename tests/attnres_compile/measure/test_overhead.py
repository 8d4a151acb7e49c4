"""The overhead table: rows from a plan, their closed forms, missing numbers, formats; and real models."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import OrderedDict

import pytest
import torch
from torch import nn

import attnres_compile as ac
from attnres_compile.measure.overhead import latency_row, overhead
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.comparison import Comparison, MeasureError, Ratio, Samples
from attnres_compile.report.rows.computation import parameter_rows
from attnres_compile.report.table import HEADERS, OverheadReport, OverheadRow
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan, Read, Stream, Write

WIDTH = 8


def hand_plan(writes: int, block_size: int, width: int = WIDTH, name: str = "stream") -> Stream:
    """A PreNorm stream of ``writes`` sublayers and a final norm, by the definition of the paper's equation 6.

    A read of a state with ``j`` writes sees block 0, the blocks that are complete, and the open one if any.
    """
    reads = []
    for state in range(writes + 1):
        complete, open_writes = divmod(state, block_size)
        sources = 1 + complete + (1 if open_writes else 0)
        reads.append(Read(f"norm{state}", "model.py:1", sources, complete + 1, state, True))
    blocks = -(-writes // block_size)
    made = tuple(Write(f"layer{index}", "model.py:2", index // block_size + 1) for index in range(writes))
    return Stream(name, width, made, tuple(reads), block_size, blocks)


def plan_of(*streams: Stream) -> Plan:
    return Plan(streams, (), AttnResConfig())


def by_metric(rows):
    return {row.metric: row for row in rows}


# --- rows from a plan ---


def test_parameters_count_two_vectors_for_each_read_with_two_sources():
    # 6 writes: 7 reads, of which the first has one source.
    (row,) = parameter_rows(plan_of(hand_plan(6, 2)), 1000)
    assert (row.plain, row.attnres, row.delta, row.how) == (1000, 1000 + 6 * 2 * WIDTH, 96, "exact")
    assert row.delta_percent == pytest.approx(9.6)


# --- rows and report ---


def test_a_missing_number_needs_a_reason():
    with pytest.raises(ValueError, match="give the reason in its note"):
        OverheadRow("latency", None, 1.0, "ms", "n/a")
    with pytest.raises(ValueError, match="how is 'guessed'"):
        OverheadRow("latency", 1.0, 1.0, "ms", "guessed")
    with pytest.raises(ValueError, match="give its comparison"):
        OverheadRow("latency", 1.0, 1.0, "ms", "measured")


def timed(ratio: Ratio) -> Comparison:
    return Comparison(
        Samples("plain", (0.010, 0.011, 0.012)),
        Samples("attnres", (0.011, 0.012, 0.013)),
        ratio,
        "CPU (toy)",
        2,
        1,
    )


def test_measured_row_names_spread_device_and_threads():
    row = latency_row("forward latency, compiled", timed(Ratio(1.09, 1.05, 1.1, 0.96)))
    assert (row.plain, row.attnres) == (pytest.approx(11), pytest.approx(12))
    assert row.delta_percent == pytest.approx(9)
    assert row.cells()[4] == "+9.00 %"
    assert "medians of 3 paired rounds" in row.note
    assert "CPU (toy), 2 threads" in row.note
    assert "plain p20 to p80 10.4 to 11.6 ms" in row.note


def test_a_ratio_that_may_be_one_is_marked():
    unresolved = latency_row("forward latency, compiled", timed(Ratio(1.01, 0.99, 1.03, 0.96)))
    assert unresolved.cells()[4] == "≈ +1.00 %"
    assert "≈ 1.010 [0.990, 1.030]" in unresolved.note


def example_report() -> OverheadReport:
    rows = (
        OverheadRow("parameters", 1_000_000, 1_000_096, "", "exact"),
        OverheadRow("stored", 512.0, 4608.0, "B", "closed form", "a note", unit_size=512),
        OverheadRow("other", 1.5, 2.25, "B", "closed form", "a note"),
        OverheadRow("fine print", 1.5, 2.25, "B", "counted", "a detail", is_detail=True),
        OverheadRow("latency", None, None, "ms", "n/a", "not measured"),
        latency_row("forward", timed(Ratio(1.09, 1.05, 1.1, 0.96))),
    )
    return OverheadReport("toy", rows, {"num_blocks": 8}, {"device": "CPU (toy)"})


def test_table_has_the_columns_and_numbers_its_notes_once():
    text = str(example_report())
    name, summary, _, header, _, *rest = text.splitlines()
    assert (name, summary) == ("toy", "AttnRes: +0.01 % parameters.")
    assert tuple(re.split(r"  +", header.strip())) == HEADERS
    assert re.search(r"parameters +1,000,000 +1,000,096 +\+96 +\+0.01 % +exact", text)
    assert re.search(r"stored \(1\) +512 B = 1.00 d +4.61 kB = 9.00 d +\+4.10 kB = \+8.00 d +\+800 %", text)
    assert re.search(r"latency \(2\) +n/a +n/a +n/a +n/a +n/a", text)
    assert [line for line in rest if line.startswith("(1)")] == ["(1) a note"]
    assert "other (1)" in text
    assert "fine print" not in text
    assert "fine print" in example_report().to_text(details=True)


def test_markdown_is_a_table_that_a_renderer_reads():
    lines = example_report().to_markdown().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert tuple(cells[0]) == HEADERS
    assert {len(row) for row in cells} == {len(HEADERS)}
    assert len(cells) == 2 + 5
    assert lines[len(cells)] == "", "a paragraph right after a table would be a row of it"


def test_csv_reads_back():
    rows = list(csv.DictReader(io.StringIO(example_report().to_csv())))
    assert [row["metric"] for row in rows] == ["parameters", "stored", "other", "fine print", "latency", "forward"]
    assert float(rows[1]["attnres"]) == 4608
    assert rows[4]["plain"] == "n/a"


def test_dict_is_json_with_a_schema_version_and_nulls():
    data = json.loads(json.dumps(example_report().to_dict()))
    assert data["schema_version"] == 2
    assert data["kind"] == "overhead"
    assert data["rows"][4]["plain"] is None
    assert data["rows"][5]["comparison"]["samples"]["plain"] == [0.010, 0.011, 0.012]
    assert data["environment"]["device"] == "CPU (toy)"


# --- real models ---


class PreNormToy(nn.Module):
    """Three sublayers: 4 states, 4 reads, the last by the head's norm."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(OrderedDict(norm=nn.LayerNorm(width), linear=nn.Linear(width, width))) for _ in range(3)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_parameters_row_is_exact_against_a_prepared_model():
    loaded = load_model("gpt2-tiny", LoadOptions(seq=16))
    row = overhead(loaded.model, loaded.args, loaded.kwargs, num_blocks=3).rows[0]
    plain = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert row.plain == plain
    ac.prepare(loaded.model, loaded.args, loaded.kwargs, num_blocks=3)
    prepared = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert row.attnres == prepared > plain


def test_an_already_prepared_model_reports_the_same():
    loaded = load_model("gpt2-tiny", LoadOptions(seq=16))
    before = overhead(loaded.model, loaded.args, loaded.kwargs, num_blocks=3)
    ac.prepare(loaded.model, loaded.args, loaded.kwargs, num_blocks=3)
    assert overhead(loaded.model, loaded.args, loaded.kwargs, num_blocks=3).rows == before.rows
    assert overhead(loaded.model, loaded.args, loaded.kwargs).rows == before.rows, "by its own plan"
    assert overhead(loaded.model, loaded.args, loaded.kwargs, num_blocks=2).rows != before.rows


def test_without_measure_latency_is_missing_and_says_how_to_get_it():
    rows = by_metric(overhead(PreNormToy(), (torch.randn(2, 3, WIDTH),), block_size=1).rows)
    row = rows["forward latency, compiled"]
    assert (row.plain, row.attnres, row.how) == (None, None, "n/a")
    assert "pass measure=True" in row.note


def test_measured_report_leaves_the_model_as_it_was():
    model = PreNormToy()
    model.eval()
    x = torch.randn(2, 3, WIDTH)
    before, output = snapshot(model), model(x)
    report = overhead(model, (x,), measure=True, rounds=6, inner="eager", block_size=1, name="toy")
    rows = by_metric(report.rows)
    for metric in ("forward latency, compiled", "training step latency, compiled"):
        row = rows[metric]
        assert row.how == "measured"
        assert row.plain > 0
        assert row.attnres > 0
        assert len(row.comparison.baseline.seconds) == len(row.comparison.candidate.seconds) == 6
        assert row.comparison.device in row.note
    after = snapshot(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(model(x), output)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert report.model == "toy"
    assert report.config["block_size"] == 1
    json.dumps(report.to_dict())


def test_the_two_models_really_differ(monkeypatch):
    """The attnres model is the rewritten model: with random queries its output is another one."""
    from attnres_compile.measure import model_pair

    model = PreNormToy()
    x = torch.randn(2, 3, WIDTH)
    pair = model_pair.prepared_pair(model, (x,), {}, AttnResConfig(inner="eager", block_size=1))
    model_pair.compile_pair(pair)
    for name, parameter in pair.attnres.named_parameters():
        if name.endswith("query"):
            nn.init.normal_(parameter)
    assert torch.allclose(pair.plain(x), model(x), atol=1e-6)
    assert not torch.allclose(pair.attnres(x), model(x), atol=1e-2)


def test_measuring_a_model_that_returns_nothing_to_train():
    class Integers(PreNormToy):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).argmax(-1)

    with pytest.raises(MeasureError, match=r"no floating tensor .*: wrap it in a module that returns a loss"):
        overhead(Integers(), (torch.randn(2, 3, WIDTH),), measure=True, rounds=1, inner="eager")


def test_overhead_is_public():
    assert ac.overhead is overhead
