"""`attnres verify` and `attnres report`."""

from __future__ import annotations

import csv
import io
import json

from tests.attnres_compile.cli.command_line import attnres


def test_verify_passes_with_0(capsys, in_directory):
    code, out, _ = attnres(capsys, "verify", "toys:pre_norm", "--inner", "eager")
    assert code == 0
    assert out.strip()
    code, out, _ = attnres(capsys, "verify", "toys:pre_norm", "--inner", "eager", "--json")
    record = json.loads(out)
    assert record["passed"] is True
    assert record["checks"]


def test_verify_fails_with_1(capsys, in_directory, monkeypatch):
    import attnres_compile as ac

    class Failed:
        passed = False

        def __str__(self):
            return "read 3 differs by 0.5"

    monkeypatch.setattr(ac, "verify", lambda *args, **options: Failed())
    code, out, _ = attnres(capsys, "verify", "toys:pre_norm")
    assert (code, out) == (1, "read 3 differs by 0.5\n")


def test_report_formats(capsys, in_directory):
    words = ("report", "toys:pre_norm", "--num-blocks", "2")
    code, table, _ = attnres(capsys, *words)
    assert code == 0
    assert "metric" in table
    assert "closed form" in table
    _, markdown, _ = attnres(capsys, *words, "--format", "md")
    assert markdown.startswith("| metric")
    _, page, _ = attnres(capsys, *words, "--format", "html")
    assert page.startswith("<!DOCTYPE html>")
    _, text, _ = attnres(capsys, *words, "--format", "csv")
    assert next(csv.DictReader(io.StringIO(text)))["metric"] == "parameters"
    _, text, _ = attnres(capsys, *words, "--format", "json")
    record = json.loads(text)
    assert (record["schema_version"], record["kind"], record["model"]) == (2, "overhead", "toys:pre_norm")


def test_report_measures_when_asked(capsys, in_directory):
    words = ("report", "toys:pre_norm", "--measure", "--rounds", "2", "--inner", "eager", "--format", "json")
    _, text, _ = attnres(capsys, *words)
    measured = [row for row in json.loads(text)["rows"] if row["how"] == "measured"]
    assert len(measured) == 2
    assert all(len(row["comparison"]["samples"]["plain"]) == 2 for row in measured)


def test_output_goes_to_a_file(capsys, in_directory):
    code, out, _ = attnres(capsys, "report", "toys:pre_norm", "--format", "json", "-o", "report.json")
    assert (code, out) == (0, "")
    assert json.loads((in_directory / "report.json").read_text())["kind"] == "overhead"
