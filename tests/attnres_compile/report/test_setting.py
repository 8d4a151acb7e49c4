"""What a report counts of checkpoints and ranks, against real runs, AttnRes by hand, and torch's own collectives."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import attnres_compile as ac
from attnres_compile.cli.main import main
from attnres_compile.models.load_options import LoadOptions
from attnres_compile.models.source import load_model
from attnres_compile.report.counting.checkpoints import SettingCounts, count_setting
from attnres_compile.report.counting.model_counts import Lengths, model_graphs
from attnres_compile.report.counting.sharding import sharded
from attnres_compile.report.parallel import Parallel, ParallelError
from attnres_passes.ir.config import AttnResConfig
from tests.attnres_compile.report import ranks
from tests.attnres_compile.report.models import Layered, PreNorm, by_hand, saved_storages
from tests.processes import run_ranks

WIDTH, HIDDEN, LAYERS, TOKENS, BLOCK = 256, 32, 4, 256, 3
UNIT = TOKENS * WIDTH * 4
"""Bytes of one state."""


@cache
def counted(checkpoint: str) -> SettingCounts:
    graphs = model_graphs(
        Layered(WIDTH, HIDDEN, LAYERS), (torch.empty(1, TOKENS, WIDTH),), {}, AttnResConfig(block_size=BLOCK)
    )
    return count_setting(graphs, graphs.count(Lengths()), Parallel(checkpoint))


def backward_flops(model: Layered, x: torch.Tensor) -> int:
    loss = model(x).sum()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("setting", ["none", "layer", "branch"])
def test_a_plain_model_keeps_and_computes_again_what_a_real_run_does(setting: str) -> None:
    x = torch.randn(1, TOKENS, WIDTH)
    model = Layered(WIDTH, HIDDEN, LAYERS, setting)
    kept, _ = saved_storages(lambda: model(x), model, x)
    found = counted(setting)
    assert found.regions == {"none": 0, "layer": LAYERS, "branch": 2 * LAYERS}[setting]
    assert found.plain.saved_bytes == sum(one.untyped_storage().nbytes() for one in kept)
    again = backward_flops(model, x) - backward_flops(Layered(WIDTH, HIDDEN, LAYERS), x)
    assert sum(found.plain.again.values()) == again
    assert (again > 0) == (setting != "none")


def test_attnres_keeps_at_the_borders_of_layers_what_a_model_by_hand_does() -> None:
    """The root, the partial sums at borders, and each completed block once; beside them less than a state."""
    x = torch.randn(1, TOKENS, WIDTH)
    model = Layered(WIDTH, HIDDEN, LAYERS, "layer")
    ours, _ = saved_storages(lambda: by_hand(model, x, BLOCK), model, x)
    plain, _ = saved_storages(lambda: model(x), model, x)
    states = [sum(one.shape == x.shape for one in kept) for kept in (ours, plain)]
    assert states[0] > states[1]
    found = counted("layer")
    more = found.attnres.saved_bytes - found.plain.saved_bytes
    assert more // UNIT == states[0] - states[1]


def test_reads_are_computed_again_with_their_layer_and_not_with_a_branch() -> None:
    layer, branch, none = (counted(setting) for setting in ("layer", "branch", "none"))
    more = sum(layer.attnres.again.values()) - sum(layer.plain.again.values())
    of_reads = sum(none.attnres.training.values()) - sum(none.plain.training.values())
    assert 0 < more < of_reads
    assert branch.attnres.again == branch.plain.again
    assert layer.attnres.saved_bytes < branch.attnres.saved_bytes < none.attnres.saved_bytes
    assert sum(none.attnres.again.values()) == 0


def test_without_a_setting_the_report_is_as_it_was_and_with_one_it_says_so() -> None:
    loaded = load_model("gpt2-tiny", LoadOptions(seq=16, dtype="bfloat16", weightless=True))

    def report(**options: object) -> ac.OverheadReport:
        return ac.overhead(loaded.model, loaded.args, loaded.kwargs, num_blocks=3, **options)

    bare, plain = report(), report(parallel=ac.Parallel())
    assert bare.rows == plain.rows
    assert bare.shape == plain.shape
    assert "parallel" not in bare.to_dict()
    chosen = report(parallel=ac.Parallel("layer", fsdp=4, tp=2))
    text, data = str(chosen), json.loads(json.dumps(chosen.to_dict()))
    line = "counted with every layer checkpointed, FSDP2 over 4 ranks, tensor parallelism over 2 ranks"
    assert line in text
    assert line in data["shape"]
    assert data["parallel"] == {"checkpoint": "layer", "fsdp": 4, "tp": 2}
    assert ac.OverheadReport.from_dict(data) == chosen
    metrics = {row.metric for row in chosen.rows}
    for without in ("training FLOPs", "activations kept for the backward"):
        assert without not in metrics
        assert f"{without}, layers checkpointed" in metrics
        assert f"{without}, layers checkpointed" in chosen.to_csv()
    assert "activations kept" in chosen.summary()
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(resources.files("attnres_compile.report").joinpath("overhead.schema.json").read_text())
    jsonschema.validate(data, schema)


@pytest.mark.processes
def test_two_ranks_send_what_is_counted(tmp_path: Path) -> None:
    run_ranks(ranks.compare, 2, str(tmp_path / "store"))


def test_what_cannot_be_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ParallelError, match="'blocks': give one of none, layer, branch"):
        Parallel("blocks")
    with pytest.raises(ParallelError, match="fsdp is 0: give the number of ranks"):
        Parallel(fsdp=0)
    with torch.device("meta"):
        toy, x = PreNorm(8, 4), torch.empty(1, 3, 8)
    with pytest.raises(ParallelError, match=r"no module holds a layer of stream .*ask for checkpoint='branch'"):
        ac.overhead(toy, (x,), parallel=Parallel("layer"))
    with pytest.raises(ParallelError, match="is a scalar, and fully_shard cuts none"):
        sharded([("scale", torch.nn.Parameter(torch.tensor(1.0)))], (), 2)
    assert main(["report", "llama-tiny", "--seq", "16", "--tp", "3"]) == 1
    said = capsys.readouterr().err
    assert "3 tensor-parallel ranks cannot share the 4 query heads of model.layers.0.self_attn evenly" in said
    assert "take a number of ranks that divides them, 2, 4." in said
    assert main(["report", "llama-tiny", "--sweep", "blocks", "--fsdp", "2"]) == 1
    assert "leave --checkpoint, --fsdp and --tp out" in capsys.readouterr().err
