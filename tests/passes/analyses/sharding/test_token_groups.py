"""Over which ranks the tokens of a stream are cut, on graphs of models that one of two ranks captures alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import SequenceParallel

from attnres_passes.analyses.aten_trace import AtenTrace
from attnres_passes.analyses.eager.recorder import trace_run
from attnres_passes.analyses.sharding.token_groups import ShardedStreamError, TokenGroups, token_groups
from attnres_passes.analyses.streams import find_streams
from attnres_passes.ir.config import AttnResConfig
from tests.end_to_end.borders import titan
from tests.fake_ranks import fake_mesh
from tests.passes.helpers import sample, traced


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    with fake_mesh() as mesh:
        yield mesh


def found_in(trace: AtenTrace, **options: Any) -> TokenGroups:
    analysis = find_streams(trace, AttnResConfig(block_size=1))
    (nodes,) = analysis.stream_nodes
    assert len(analysis.plan.streams[0].writes) == 2 * titan.LAYERS
    assert all(read.normed for read in analysis.plan.streams[0].reads)
    return token_groups(trace, nodes, **options)


def model_under(plan: Any, mesh: DeviceMesh) -> nn.Module:
    model = titan.build()
    plan(model, mesh)
    return model


SEQUENCE = [titan.sequence_parallel, partial(titan.sequence_parallel, local=False)]


@pytest.mark.parametrize("plan", SEQUENCE, ids=["plain", "DTensor"])
def test_sequence_parallel(mesh: DeviceMesh, plan: Any) -> None:
    found = found_in(traced(model_under(plan, mesh), titan.ids()))
    group = mesh.get_group().group_name
    assert found.reads == ((group,),) * 5
    assert found.stream == ((group,) if plan is titan.sequence_parallel else ())


@pytest.mark.parametrize("plan", SEQUENCE, ids=["plain", "DTensor"])
@pytest.mark.parametrize("grad", [True, False])
def test_of_a_run_by_python(mesh: DeviceMesh, plan: Any, grad: bool) -> None:
    """from_local and to_local leave no call of torch in Python without gradients."""
    with torch.set_grad_enabled(grad):
        found = found_in(trace_run(model_under(plan, mesh), (titan.ids(),), {}))
    assert found.reads == ((mesh.get_group().group_name,),) * 5


def test_tensor_parallel_has_all_tokens(mesh: DeviceMesh) -> None:
    assert not any(found_in(traced(model_under(titan.tensor_parallel, mesh), titan.ids())).reads)


def test_known_from_the_graph_before(mesh: DeviceMesh) -> None:
    assert found_in(traced(titan.build(), titan.ids()), known=("7",)).reads == (("7",),) * 5


def test_parts_that_do_not_agree(mesh: DeviceMesh) -> None:
    """A norm of tokens that the plan takes to be cut, in a stream that every rank has whole."""
    model = model_under(titan.tensor_parallel, mesh)
    model.norm = titan.parallelize_module(model.norm, mesh, SequenceParallel())
    with pytest.raises(ShardedStreamError, match="cut along its tokens"):
        found_in(traced(model, titan.ids()))


def test_reduce_scatter_by_hand(mesh: DeviceMesh) -> None:
    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(4))
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            for norm, matrix in self.layers:
                whole = dist._functional_collectives.all_gather_tensor(norm(x), 0, dist.group.WORLD)
                part = dist._functional_collectives.reduce_scatter_tensor(matrix(whole), "sum", 0, dist.group.WORLD)
                x = x + part
            return x

    trace = traced(ByHand(), sample())
    (nodes,) = find_streams(trace, AttnResConfig(block_size=1)).stream_nodes
    assert token_groups(trace, nodes).stream == (dist.group.WORLD.group_name,)
