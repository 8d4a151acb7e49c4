"""A few generated models of each kind, and that the comparison finds what is wrong. Thousands: ``tests.generated``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.generated.description import Description, possible
from tests.generated.judge import judge
from tests.generated.near_misses import NEAR_MISSES
from tests.generated.run import drawn, key_of

FEW = drawn(8, from_seed=1)


@pytest.mark.parametrize("description", FEW, ids=key_of)
def test_model_is_what_its_description_says(description: Description) -> None:
    assert judge(description) == ("declined" if description.near_miss else "rewritten")


@pytest.mark.parametrize("near_miss", sorted({one.reason for one in NEAR_MISSES.values()}))
def test_near_misses_of_every_reason(near_miss: str) -> None:
    names = [name for name, one in NEAR_MISSES.items() if one.reason == near_miss]
    first = next(one for one in FEW if one.near_miss is None)
    assert judge(possible(replace(first, near_miss=names[0]))) == "declined"


def test_through_the_front_door() -> None:
    towers = [one for one in FEW if one.topology == "tower"]
    assert judge(towers[0], through_front_door=True) == "rewritten"
