"""Parts of DTensors, and the gradients of parameters that ranks use on tokens of their own; with the ranks of a fake
group, whose sums give back what this rank adds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from attnres_passes.torch_private.ranks import dtensors
from tests.fake_ranks import fake_mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    with fake_mesh() as mesh:
        yield mesh


def test_how_a_tensor_is_spread(mesh: DeviceMesh) -> None:
    part, group = torch.ones(2, 3, 4), mesh.get_group().group_name
    cases = {Replicate(): "whole", Shard(1): 1, Shard(-1): 2, Partial(): "partial"}
    for placement, expected in cases.items():
        assert dtensors.placed(DTensor.from_local(part, mesh, [placement])) == dtensors.Placed((group,), (expected,))
    assert dtensors.placed(part) is None


def test_what_a_read_takes(mesh: DeviceMesh) -> None:
    part = torch.ones(2, 3, 4)
    taken = {Replicate(): "whole", Shard(1): 1, Shard(2): "whole", Partial(): "whole"}
    for placement, expected in taken.items():
        state = DTensor.from_local(part, mesh, [placement], run_check=False)
        assert dtensors.read_parts(state) == (expected,)
        assert dtensors.cut_over(state) == ((mesh.get_group().group_name,) if expected == 1 else ())
    assert dtensors.read_parts(part) == dtensors.cut_over(part) == ()


def test_parts_and_back(mesh: DeviceMesh) -> None:
    """Also where the tokens are no multiple of the ranks: this one holds 2 of 3."""
    own = torch.randn(2, 2, 4, requires_grad=True)
    whole = DTensor.from_local(own, mesh, [Shard(1)], run_check=False, shape=(2, 3, 4), stride=(12, 4, 1))
    part = dtensors.local_part(whole, (1,))
    again = dtensors.spread_like(part * 2, whole, (1,))
    assert again.shape == (2, 3, 4)
    again.sum().backward()
    torch.testing.assert_close(own.grad, torch.full_like(own, 2.0))
    assert dtensors.local_part(own, (1,)) is own
    assert dtensors.spread_like(own, own, (1,)) is own


def test_gradients_are_summed(mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one sum for all parameters, over each group."""
    sums = []

    def all_reduce(own: torch.Tensor, group: str) -> torch.Tensor:
        sums.append((own.shape, group))
        return 2 * own

    monkeypatch.setattr(dtensors, "all_reduce", all_reduce)
    given = [torch.ones(4, requires_grad=True), torch.ones(3, requires_grad=True), torch.ones(2)]
    own = dtensors.on_own_tokens(given, ("a", "b"))
    (own[0].sum() + 3 * own[1].sum() + own[2].sum()).backward()
    assert sums == [((7,), "a"), ((7,), "b")]
    torch.testing.assert_close(given[0].grad, torch.full((4,), 4.0))
    torch.testing.assert_close(given[1].grad, torch.full((3,), 12.0))


def test_a_dtensor_is_summed_by_its_mesh(mesh: DeviceMesh) -> None:
    group = mesh.get_group().group_name
    query = torch.nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Replicate()]))
    for groups, expected in (((group,), Partial()), ((), Replicate())):
        query.grad = None
        (own,) = dtensors.on_own_tokens([query], groups)
        assert type(own) is torch.Tensor
        own.sum().backward()
        assert query.grad.placements == (expected,)


def test_nothing_is_done_without_gradients(mesh: DeviceMesh) -> None:
    value = torch.ones(4, requires_grad=True)
    with torch.no_grad():
        assert dtensors.on_own_tokens([value], ("a",))[0] is value
