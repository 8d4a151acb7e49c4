"""`attnres inspect`: formats, levels, folding, and exit codes."""

from __future__ import annotations

import json

import pytest

from tests.attnres_compile.cli.command_line import attnres


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


def test_inspect_exits_with_2_for_a_piece_of_a_stream(capsys, in_directory):
    code, out, _ = attnres(capsys, "inspect", "toys:clamped")
    assert code == 2
    assert out.startswith(
        "partly rewritten: stream linears holds 2 writes, and 2 more additions of its chain are left out"
    )
    _, out, _ = attnres(capsys, "inspect", "toys:clamped", "--json")
    record = json.loads(out)
    assert (record["verdict"], record["exit_code"], record["declined"]) == ("partly", 2, [])


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


def test_inspect_takes_the_plan_that_is_saved_beside_a_model(capsys, tmp_path):
    """Its blocks and its scale, as far as no option says another; other programs read the file, too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_head=2, n_layer=3, vocab_size=32, n_positions=32)
    model = transformers.GPT2LMHeadModel(config)
    import torch

    import attnres_compile as ac

    ac.prepare(model, (torch.zeros(1, 4, dtype=torch.long),), block_size=3, scale="sum")
    model.config.save_pretrained(tmp_path)
    ac.save(model, tmp_path)
    _, out, _ = attnres(capsys, "inspect", str(tmp_path), "--seq", "4", "--json")
    saved = json.loads(out)["config"]
    assert (saved["block_size"], saved["num_blocks"], saved["scale"]) == (3, None, "sum")
    _, out, _ = attnres(capsys, "inspect", str(tmp_path), "--seq", "4", "--num-blocks", "1", "--json")
    other = json.loads(out)["config"]
    assert (other["block_size"], other["num_blocks"], other["scale"]) == (None, 1, "sum")
    _, out, _ = attnres(capsys, "inspect", str(tmp_path / "config.json"), "--seq", "4", "--json")
    assert json.loads(out)["config"]["scale"] == "mean"
    (tmp_path / "attnres.json").write_text("[]")
    code, _, err = attnres(capsys, "inspect", str(tmp_path), "--seq", "4")
    assert code == 1
    assert "attnres.json cannot be read as a plan" in err
