"""Streams that can be rewritten: their names, their modules and lines, their blocks, and which are selected."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.plan import Reason
from tests.passes.helpers import WIDTH, Function, analysed, line_of, only_stream, sample


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        attended = self.ln_1(x)  # read 1
        x = x + self.attn(attended)  # write 1
        expanded = self.ln_2(x)  # read 2
        return x + self.mlp(expanded)  # write 2


class Towers(nn.Module):
    """An encoder and a decoder, or two streams in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(2))})
        self.decoder = nn.ModuleDict({"layers": nn.ModuleList(Block() for _ in range(2))})
        self.norm = nn.LayerNorm(WIDTH)
        self.double()

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.encoder["layers"]:
            x = block(x)
        for block in self.decoder["layers"]:
            y = block(y)
        return self.norm(x), self.norm(y)


def towers(**options: Any) -> Any:
    return analysed(Towers(), sample(), sample(seed=2), **options)[1].plan


def test_streams_are_named_after_the_module_that_holds_their_writes() -> None:
    assert [stream.name for stream in towers().streams] == ["encoder.layers", "decoder.layers"]


def test_streams_of_one_module_get_unique_names() -> None:
    def model(self: Function, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        for norm, linear in zip(self.norm, self.linear, strict=False):
            x = x + linear(norm(x))
        for norm, linear in zip(self.norm, self.linear, strict=False):
            y = y + linear(norm(y))
        return self.norm[-1](x), self.norm[-1](y)

    names = [stream.name for stream in analysed(model, sample(), sample(seed=2))[1].plan.streams]
    assert names == ["linear", "linear.2"]


def test_only_selected_streams_are_rewritten() -> None:
    plan = towers(streams=["decoder.layers"])
    assert [stream.name for stream in plan.streams] == ["decoder.layers"]
    (decline,) = plan.declined
    assert decline.reason is Reason.NOT_SELECTED
    assert "'encoder.layers'" in decline.message
    assert decline.writes == 4
    assert decline.source == f"{__file__}:{line_of(Block.forward, '# write 1')}"


def test_selecting_an_unknown_name_leaves_every_stream() -> None:
    plan = towers(streams=["encodr.layers"])
    assert plan.streams == ()
    assert [decline.reason for decline in plan.declined] == [Reason.NOT_SELECTED] * 2


def test_plan_of_a_stream_names_modules_lines_blocks_and_sources() -> None:
    stream = towers(block_size=2).streams[0]
    assert (stream.width, stream.block_size, stream.num_blocks) == (WIDTH, 2, 2)
    prefix = "encoder.layers"
    assert [write.module for write in stream.writes] == [
        f"{prefix}.0.attn",
        f"{prefix}.0.mlp",
        f"{prefix}.1.attn",
        f"{prefix}.1.mlp",
    ]
    assert [write.block for write in stream.writes] == [1, 1, 2, 2]
    assert [read.module for read in stream.reads] == [
        f"{prefix}.0.ln_1",
        f"{prefix}.0.ln_2",
        f"{prefix}.1.ln_1",
        f"{prefix}.1.ln_2",
        "norm",
    ]
    assert [(read.num_sources, read.block, read.state) for read in stream.reads] == [
        (1, 1, 0),
        (2, 1, 1),
        (2, 2, 2),
        (3, 2, 3),
        (3, None, 4),  # there is no third block
    ]
    lines = [write.source for write in stream.writes]
    assert lines == [f"{__file__}:{line_of(Block.forward, f'# write {k}')}" for k in (1, 2, 1, 2)]
    reads = [read.source for read in stream.reads[:2]]
    assert reads == [f"{__file__}:{line_of(Block.forward, f'# read {k}')}" for k in (1, 2)]


def test_width_is_the_size_of_the_last_axis() -> None:
    def model(self: Function, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + F.rms_norm(x, (5,)) @ x.new_ones(5, 5)
        return F.rms_norm(x, (5,))

    assert only_stream(analysed(model, sample(2, 3, 5))[1]).width == 5


def test_analysis_changes_nothing() -> None:
    found, analysis = analysed(Block().double())
    text = found.gm.code
    again = find_streams(analysis.trace, analysis.plan.config)
    assert again.plan == analysis.plan
    assert found.gm.code == text
