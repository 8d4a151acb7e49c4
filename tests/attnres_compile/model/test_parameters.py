"""What stands in the place of the parameters."""

from __future__ import annotations

import pytest
from torch import nn

import attnres_compile as ac
from tests.end_to_end.models import PreNorm, tokens


class Wrapper(nn.Module):
    """As peft's ``modules_to_save`` puts one around a module."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.original_module = inside


def test_a_wrapper_around_all_parameters_is_named_and_its_mend() -> None:
    model, ids = PreNorm(), tokens()
    ac.prepare(model, (ids,), num_blocks=2, inner="eager")
    whole = model.attnres
    model.attnres = Wrapper(whole)
    model.compile(backend="attnres", options={"inner": "eager"})
    expected = r"a Wrapper stands where prepare put PreNorm\.attnres.*modules_to_save=\['attnres\.streams\.0'\]"
    for call in (
        lambda: model(ids),
        lambda: ac.status(model),
        lambda: ac.param_groups(model, lr=1.0, weight_decay=0.0),
    ):
        with pytest.raises(ac.AttnResError, match=expected):
            call()
    model.attnres = whole
    model(ids)


def test_a_module_of_that_name_without_our_parameters_is_nothing_of_ours() -> None:
    model = PreNorm()
    model.attnres = nn.Linear(2, 2)
    with pytest.raises(ac.AttnResError, match="no AttnRes parameters"):
        ac.status(model) and ac.param_groups(model, lr=1.0, weight_decay=0.0)
