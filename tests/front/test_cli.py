"""The command line: verbs, exit codes, formats, files, and one clear line for every error."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys

import pytest

from attnres_compile.cli import main as cli
from attnres_compile.cli import verbs as cli_verbs
from attnres_kernels.errors import AttnResError

transformers = pytest.importorskip("transformers")

FACTORIES = """
import torch
from torch import nn


class PreNorm(nn.Module):
    def __init__(self, width=8, post_norm=False, normed=True):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.post_norm = post_norm

    def forward(self, x):
        for linear, norm in zip(self.linears, self.norms):
            x = norm(x + linear(x)) if self.post_norm else x + linear(norm(x))
        return self.norms[-1](x)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = PreNorm(8), PreNorm(8, post_norm=True)

    def forward(self, x):
        return self.second(self.first(x))


def inputs(batch):
    return (torch.randn(batch, 4, 8),), {}


def pre_norm(batch=2):
    return PreNorm(), *inputs(batch)


def post_norm(batch=2):
    return PreNorm(post_norm=True), *inputs(batch)


def mixed(batch=2):
    return Mixed(), *inputs(batch)


def no_residual(batch=2):
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), *inputs(batch)


def failing():
    raise ValueError("no weights here")
"""


@pytest.fixture
def in_directory(tmp_path, monkeypatch):
    (tmp_path / "toys.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("toys", None)


def attnres(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    code = cli.main(words)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# --- inspect ---


def test_inspect_prints_the_plan_and_exits_with_0(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--num-blocks", "2")
    assert code == 0
    assert "width 8, 3 writes in 2 blocks of 2, 4 reads" in out
    assert "norms.1" in out
    assert "toys.py:" in out


def test_inspect_exits_with_2_for_a_partly_rewritten_model(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:mixed")
    assert code == 2
    assert "declined" in out
    assert "post_norm" in out


@pytest.mark.parametrize("model", ["toys:post_norm", "toys:no_residual"])
def test_inspect_exits_with_3_when_nothing_is_rewritten(capsys, in_directory, model):
    code, out, err = attnres(capsys, "inspect", model)
    assert code == 3
    assert out.strip()
    assert "error" not in err


def test_inspect_json(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:mixed", "--json")
    record = json.loads(out)
    assert record["exit_code"] == code == 2
    assert record["model"] == "toys:mixed"
    assert record["schema_version"] >= 1
    assert "graph" not in record


def test_inspect_prints_the_schedule_with_its_level(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--level", "scheduled")
    assert code == 0
    assert "moved per read and token" in out
    assert "bound to torch: a stream is on cpu" in out
    assert "inter_block(" in out
    _, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--level", "scheduled", "--json")
    assert "bound to torch" in json.loads(out)["schedule"]


@pytest.mark.parametrize(("level", "holds"), [("captured", False), ("rewritten", True)])
def test_inspect_prints_the_graph_of_a_level(capsys, in_directory, level, holds):
    code, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--level", level)
    assert code == 0
    assert "def forward" in out
    assert ("depth_attention" in out) == holds
    _, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--level", level, "--json")
    assert "def forward" in json.loads(out)["graph"]


@pytest.mark.parametrize(
    ("form", "begins"),
    [("text", "partly rewritten: "), ("html", "<!DOCTYPE html>"), ("svg", "<svg "), ("dot", "digraph"), ("json", "{")],
)
def test_inspect_in_every_format(capsys, in_directory, form, begins):
    code, out, _ = attnres(capsys, "inspect", "toys:mixed", "--format", form)
    assert code == 2
    assert out.lstrip().startswith(begins)


def test_inspect_writes_a_page_to_a_file(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--format", "html", "-o", "page.html")
    assert (code, out) == (0, "")
    page = (in_directory / "page.html").read_text()
    assert "toys:pre_norm" in page
    assert "toys.py:" in page


def test_inspect_diff_is_the_difference_alone(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--diff", "--num-blocks", "2")
    assert code == 0
    assert out.startswith("--- ")
    assert "\n-norms.3(x)\n+norms.3(depth_attention(b0 .. b2))\n" in out
    code, out, _ = attnres(capsys, "inspect", "toys:post_norm", "--diff")
    assert (code, out) == (3, "nothing rewritten: post_norm\n")
    _, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--diff", "--json")
    assert json.loads(out)["diff"].startswith("--- ")


def test_inspect_folds_and_expands(capsys, in_directory):
    _, out, _ = attnres(capsys, "inspect", "gpt2-tiny", "--seq", "16")
    assert "transformer.h.1-3.mlp" in out
    _, out, _ = attnres(capsys, "inspect", "gpt2-tiny", "--seq", "16", "--expand", "h.2", "--expand", "3")
    assert "transformer.h.2.mlp" in out
    assert "transformer.h.3.mlp" in out
    assert "1-3" not in out


def test_inspect_options_that_do_not_go_together(capsys, in_directory):
    code, out, err = attnres(capsys, "inspect", "toys:pre_norm", "--format", "svg", "--level", "captured")
    assert (code, out) == (1, "")
    assert "--level and --diff are text, and --format is svg" in err
    code, out, err = attnres(capsys, "inspect", "toys:pre_norm", "--expand", "9")
    assert (code, out) == (1, "")
    assert "--expand 9: no stream goes through a layer of that name" in err


def test_options_reach_the_rewrite(capsys, in_directory):
    _, out, _ = attnres(capsys, "inspect", "toys:pre_norm", "--block-size", "1", "--json")
    _, other, _ = attnres(capsys, "inspect", "toys:pre_norm", "--num-blocks", "1", "--json")
    assert out != other
    _, out, _ = attnres(capsys, "inspect", "gpt2-tiny", "--block-size", "2", "--seq", "16")
    assert "8 writes in 4 blocks of 2" in out


def test_an_unknown_stream_leaves_nothing_and_the_output_names_those_there_are(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "gpt2-tiny", "--seq", "16", "--stream", "nowhere")
    assert code == 3
    assert "stream 'transformer.h' is not among streams=['nowhere']" in out
    code, out, _ = attnres(capsys, "inspect", "gpt2-tiny", "--seq", "16", "--stream", "transformer.h")
    assert code == 0


def test_choosing_a_stream_is_no_miss(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "t5-tiny", "--seq", "16", "--stream", "encoder.block")
    assert code == 0
    assert "not_selected" in out


# --- verify ---


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


# --- report ---


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


# --- bench ---


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


# --- errors ---


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("inspect", "gpt3"), "'gpt3' is not a preset: did you mean gpt2"),
        (("verify", "toys:failing"), "toys:failing raised ValueError: no weights here (at "),
        (
            ("report", "nowhere/config.json"),
            "there is no configuration at nowhere/config.json: pass a directory",
        ),
        (("inspect", "gpt2-tiny", "--seq", "600"), "seq 600 is longer than the model allows"),
        (("inspect", "gpt2-tiny", "--batch", "0"), "batch is 0: pass at least 1"),
        (("inspect", "toys:pre_norm", "--num-blocks", "0"), "num_blocks"),
        (("inspect", "toys:pre_norm", "--seq", "9"), "no parameter 'seq': add one to the factory"),
        (("report", "toys:post_norm"), "post_norm"),
        (("verify", "toys:no_residual"), ""),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(capsys, in_directory, words, message):
    code, out, err = attnres(capsys, *words)
    assert (code, out) == (1, "")
    lines = [line for line in err.splitlines() if line.startswith("attnres: error: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err


def test_traceback_on_demand(in_directory):
    with pytest.raises(AttnResError):
        cli.main(["inspect", "gpt3", "--traceback"])


def test_errors_that_are_not_ours_are_not_hidden(in_directory, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(cli_verbs, "_load", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["inspect", "gpt2-tiny"])


def test_an_error_that_the_compiler_wrapped_is_found():
    ours = AttnResError("do this")
    wrapped = RuntimeError("backend failed")
    wrapped.inner_exception = ours
    assert cli.own_error(wrapped) is ours
    outer = RuntimeError("outer")
    outer.__cause__ = wrapped
    assert cli.own_error(outer) is ours
    assert cli.own_error(RuntimeError("other")) is None


@pytest.mark.parametrize(
    "words",
    [
        ("report", "toys:pre_norm", "-o", "missing/report.txt"),
        ("inspect", "toys:pre_norm", "--output", "."),
        ("bench", "model", "toys:pre_norm", "--json", "missing/bench.json"),
        ("bench", "analysis", "--json", "missing/bench.json"),
    ],
)
def test_unwritable_output_is_found_before_any_work(capsys, in_directory, monkeypatch, words):
    monkeypatch.setattr(cli_verbs, "_load", lambda arguments: pytest.fail("the model was loaded"))
    monkeypatch.setattr("attnres_compile.models.source.load_model", lambda *_: pytest.fail("the model was loaded"))
    code, out, err = attnres(capsys, *words)
    assert (code, out) == (1, "")
    assert "cannot be written" in err
    assert "pass a path in a directory you can write to" in err
    assert not (in_directory / "missing").exists()


def test_checking_a_path_leaves_no_file_and_keeps_an_old_one(capsys, in_directory):
    kept = in_directory / "kept.txt"
    kept.write_text("old")
    assert attnres(capsys, "inspect", "gpt3", "-o", "kept.txt")[0] == 1
    assert kept.read_text() == "old"
    assert attnres(capsys, "inspect", "gpt3", "-o", "new.txt")[0] == 1
    assert not (in_directory / "new.txt").exists()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("inspect",),
        ("report", "gpt2", "--format", "html5"),
        ("report", "gpt2", "--sweep", "depth"),
        ("inspect", "gpt2", "--batch", "two"),
        ("dance",),
    ],
)
def test_usage_errors_exit_with_1_and_not_with_2(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 1
    assert "usage: attnres" in capsys.readouterr().err


def test_blocks_by_number_or_by_size(capsys):
    with pytest.raises(SystemExit):
        cli.main(["inspect", "gpt2", "--num-blocks", "2", "--block-size", "2"])
    assert "not allowed with argument" in capsys.readouterr().err


# --- as a program ---


def test_help_needs_neither_torch_nor_transformers(child_environment):
    code = (
        "import sys; from attnres_compile.cli import main as cli\n"
        "try: cli.main(['inspect', '--help'])\n"
        "except SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    # Without the shim of the tests, which imports torch.
    environment = child_environment | {"PYTHONPATH": child_environment["PYTHONPATH"].split(":", 1)[1]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("loaded []")
    assert "--num-blocks" in done.stdout


def test_runs_as_a_module_and_into_a_closed_pipe(child_environment, in_directory):
    command = [sys.executable, "-m", "attnres_compile", "inspect", "gpt3"]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("attnres: error: 'gpt3' is not a preset")
    assert done.stderr.count("\n") == 1


def test_help_lists_the_presets_with_their_sources(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["inspect", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "whisper-tiny" in out
    assert "openai/whisper-tiny" in out
