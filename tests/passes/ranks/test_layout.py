"""Which rank runs which chunk."""

from __future__ import annotations

import pytest

from attnres_passes.ranks.layout import StageError, StageLayout, StageOrder


@pytest.mark.parametrize("arguments", [(0, 1), (2, 0), (True, 1), (2.0, 1), (2, 1, "w")])
def test_no_such_layout(arguments: tuple) -> None:
    with pytest.raises(StageError):
        StageLayout(*arguments)


def test_v_order_turns_at_the_last_rank() -> None:
    assert [StageLayout(3, 2, StageOrder.V).rank_of(chunk) for chunk in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [StageLayout(3, 2).rank_of(chunk) for chunk in range(6)] == [0, 1, 2, 0, 1, 2]
    assert StageLayout(3, 2, StageOrder.V).chunks_of(2) == (2, 3)
