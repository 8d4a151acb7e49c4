from __future__ import annotations

from pathlib import Path

import pytest
import torch

from attnres_compile.model.errors import SavedStateError
from tests.attnres_compile.api.plans import OTHERS, SAVED, assert_equal
from tests.attnres_compile.api.sharded_checkpoints import load, on_two_ranks, save, train, values, whole
from tests.processes import run_ranks

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")]


def test_from_one_process_to_two_and_back(tmp_path: Path) -> None:
    """Parameters and optimizer states arrive to the bit, and training goes on as if it had never left."""
    uninterrupted = whole(**SAVED)
    train(uninterrupted, range(2))
    save(uninterrupted, tmp_path / "of one")
    torch.save(values(uninterrupted), tmp_path / "of one.pt")
    run_ranks(on_two_ranks, 2, str(tmp_path))

    resumed = whole(2, **SAVED)
    load(resumed, tmp_path / "of two")
    assert_equal(values(resumed), torch.load(tmp_path / "of two.pt"))
    train(resumed, range(4, 6))
    train(uninterrupted, range(2, 6))
    # The ranks run the layers as graphs of their own, which round in another order.
    torch.testing.assert_close(values(resumed), values(uninterrupted), rtol=0, atol=1e-9)
    states = [name for name in values(resumed) if name.startswith("attnres.") and name.endswith("query exp_avg")]
    assert len(states) == 3

    options, message = OTHERS[1]
    with pytest.raises(SavedStateError, match=message):
        load(whole(**options), tmp_path / "of two")
