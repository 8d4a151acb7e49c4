"""Every trainable parameter is in one group, and in the right one."""

from __future__ import annotations

import pytest
import torch

import attnres_compile as ac
from attnres_compile.model.errors import NotPreparedError
from tests.end_to_end.models import PreNorm, tokens


@pytest.fixture
def model() -> PreNorm:
    made = PreNorm()
    ac.prepare(made, (tokens(),), inner="eager")
    made.blocks[0].norm.weight.requires_grad_(False)
    return made


def names(model: PreNorm, groups: list[dict]) -> list[set[str]]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [[by_id[id(parameter)] for parameter in group["params"]] for group in groups]
    assert all(len(set(group)) == len(group) for group in found)
    return [set(group) for group in found]


def test_groups(model: PreNorm) -> None:
    groups = ac.param_groups(model, lr=0.1, weight_decay=0.2)
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.0]
    assert {group["lr"] for group in groups} == {0.1}
    matrices, vectors, ours = names(model, groups)
    assert {"embedding.weight", "head.weight", "blocks.1.mlp.0.weight"} <= matrices
    assert {"norm.bias", "blocks.1.mlp.0.bias"} <= vectors
    assert ours == {f"attnres.{name}" for name, _ in model.attnres.named_parameters()}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert matrices | vectors | ours == trained
    assert len(matrices) + len(vectors) + len(ours) == len(trained)


@pytest.mark.parametrize("tied", [False, True])
def test_muon(model: PreNorm, tied: bool) -> None:
    if tied:
        model.head.weight = model.embedding.weight
    model.blocks[1].table = torch.nn.Embedding(3, 16)  # inside a layer, and no matrix to multiply by
    for_muon, for_adamw = ac.param_groups(model, lr=0.1, weight_decay=0.2, muon=True)
    (hidden,) = names(model, for_muon)
    assert hidden == {f"blocks.{block}.mlp.{place}.weight" for block in range(3) for place in (0, 2)}
    assert [group["weight_decay"] for group in for_muon] == [0.2]
    matrices, *_ = names(model, for_adamw)
    assert matrices == {"embedding.weight", "blocks.1.table.weight"} | (set() if tied else {"head.weight"})
    assert for_adamw[-1]["name"] == "attnres"
    held = [parameter for group in (*for_muon, *for_adamw) for parameter in group["params"]]
    assert {id(one) for one in held} == {id(one) for one in model.parameters() if one.requires_grad}
    assert len(held) == len(set(map(id, held)))


def test_muon_of_a_wrapper(model: PreNorm) -> None:
    """Matrices of what is around the prepared model are not its layers."""
    whole = torch.nn.Sequential(model, torch.nn.Linear(13, 13, bias=False))
    for_muon, for_adamw = ac.param_groups(whole, lr=0.1, weight_decay=0.2, muon=True)
    assert len(for_muon[0]["params"]) == 6
    assert any(parameter is whole[1].weight for parameter in for_adamw[0]["params"])


def test_not_prepared() -> None:
    with pytest.raises(NotPreparedError):
        ac.param_groups(PreNorm(), lr=0.1, weight_decay=0.2, muon=True)
