"""Which modules are layers, and which calls of them and branches become regions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attnres_compile.capture.analysis import AnalysedGraph
from attnres_compile.report.counting.model_counts import model_graphs
from attnres_compile.report.counting.places import Places, branches_of, last_product, layer_regions, layers_of
from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.regions import region_of
from tests.attnres_compile.report.models import Layer, Layered


class Shared(nn.Module):
    """One layer that is applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = Layer(8, 4), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return self.norm(x)


def analysed(model: nn.Module) -> AnalysedGraph:
    (graph,) = model_graphs(model, (torch.empty(1, 3, 8),), {}, AttnResConfig()).graphs
    return graph


@pytest.mark.parametrize(
    ("model", "paths", "calls"),
    [
        (Layered(8, 4, 3), ("layers.0", "layers.1", "layers.2"), 3),
        (Layered(8, 4, 1), ("layers.0",), 1),
        (Shared(), ("layer",), 3),
    ],
    ids=["several", "one", "shared"],
)
def test_a_region_is_a_call_of_a_layer(model: nn.Module, paths: tuple[str, ...], calls: int) -> None:
    graph = analysed(model)
    assert layers_of(graph.analysis.plan) == paths
    placed = layer_regions(graph)
    assert len(set(placed.values())) == calls
    writes = [
        len([node for node, one in placed.items() if one is region and _adds(node)]) for region in placed.values()
    ]
    assert set(writes) == {2}


def test_a_branch_lies_between_a_norm_and_an_addition() -> None:
    graph = analysed(Layered(8, 4, 2))
    for branch in branches_of(graph):
        assert [node.target for node in branch.inner] == [nn.functional.linear, torch.tanh, nn.functional.linear]
        assert [node.target for node in branch.inputs] == [nn.functional.layer_norm]
        assert last_product(graph, branch) is branch.write is branch.inner[-1]


def test_regions_are_taken_off_again() -> None:
    graph = analysed(Layered(8, 4, 2))
    nodes = list(graph.captured.gm.graph.nodes)
    before = [dict(node.meta) for node in nodes]
    with Places(layer_regions(graph)).placed(graph):
        assert any(region_of(node) for node in nodes)
    assert [dict(node.meta) for node in nodes] == before


def _adds(node: torch.fx.Node) -> bool:
    return getattr(node.target, "__name__", "") in ("add", "iadd")
