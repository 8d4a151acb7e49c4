"""`attnres bench` on the command line: records, and what is refused."""

from __future__ import annotations

import json

import pytest

from tests.attnres_compile.cli.command_line import attnres


def test_bench_model_keeps_a_record_and_shows_it_again(capsys, in_directory):
    words = (
        "bench",
        "model",
        "gpt2-tiny",
        "--seq",
        "16",
        "--rounds",
        "3",
        "--inner",
        "eager",
        "--json",
        "bench.json",
    )
    code, table, _ = attnres(capsys, *words)
    assert code == 0
    record = json.loads((in_directory / "bench.json").read_text())
    assert record["command"] == "attnres " + " ".join(words)
    assert record["inputs"] == {"input_ids": [1, 16]}
    assert [cell["workload"] for cell in record["cells"]] == ["prefill", "training step", "decode step"]
    assert all(len(cell["latency"]["samples"]["attnres"]) == 3 for cell in record["cells"])
    assert record["environment"]["versions"]["torch"]
    assert "compile" not in record
    code, again, _ = attnres(capsys, "bench", "show", "bench.json")
    assert (code, again) == (0, table)
    assert "prefill [ms]" in table
    assert "≈" in table, "three rounds resolve nothing"


def test_bench_of_one_workload_without_dropout(capsys, in_directory):
    words = ("bench", "model", "toys:pre_norm", "--workload", "training", "--rounds", "1", "--inner", "eager")
    code, table, _ = attnres(capsys, *words, "--no-dropout")
    assert code == 0
    assert "training step [ms]" in table
    assert "prefill [ms]" not in table


def test_bench_analysis(capsys, in_directory):
    words = ("bench", "analysis", "--layers", "2", "4", "--rounds", "1", "--json", "analysis.json")
    code, table, _ = attnres(capsys, *words)
    assert code == 0
    record = json.loads((in_directory / "analysis.json").read_text())
    assert set(record["seconds"]) == {"capture", "analysis", "rewrite"}
    assert {"2", "4"} == set(record["seconds"]["analysis"])
    assert "exponent" in table
    assert attnres(capsys, "bench", "show", "analysis.json")[1] == table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("bench", "analysis", "--layers", "4"), "pass at least 2 different depths"),
        (("bench", "analysis", "--layers", "4", "0"), "pass depths of at least 1"),
        (("bench", "analysis", "--rounds", "0"), "rounds is 0: pass at least 1"),
        (("bench", "model", "toys:pre_norm", "--rounds", "0"), "rounds is 0: pass at least 1"),
        (("bench", "show", "toys.py"), "toys.py is not a readable record"),
        (("bench", "show", "missing.json"), "missing.json is not a readable record"),
    ],
)
def test_bench_errors(capsys, in_directory, words, message):
    code, out, err = attnres(capsys, *words)
    assert (code, out) == (1, "")
    assert message in err


def test_show_refuses_another_record(capsys, in_directory):
    (in_directory / "other.json").write_text('{"kind": "bench model", "schema_version": 99}')
    code, _, err = attnres(capsys, "bench", "show", "other.json")
    assert code == 1
    assert "no record of `attnres bench model` with schema_version 1 or 2: measure again" in err


@pytest.mark.parametrize("kind", ["bench kernels", "bench offline"])
def test_show_names_the_command_for_a_record_of_kernels(capsys, in_directory, kind):
    (in_directory / "kernels.json").write_text(json.dumps({"kind": kind, "schema_version": 1}))
    code, out, err = attnres(capsys, "bench", "show", "kernels.json")
    assert (code, out) == (1, "")
    assert f"kernels.json is a record of kernels (its kind is '{kind}')" in err
    assert "run `python -m kernels.benchmarks show kernels.json` at its root" in err
