"""`attnres` as a program: errors, usage, help."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attnres_compile.cli import command
from attnres_compile.cli import main as cli
from attnres_compile.cli import verbs as cli_verbs
from attnres_kernels.errors import AttnResError
from tests.attnres_compile.cli.command_line import attnres


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
    assert command.own_error(wrapped) is ours
    outer = RuntimeError("outer")
    outer.__cause__ = wrapped
    assert command.own_error(outer) is ours
    assert command.own_error(RuntimeError("other")) is None


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
