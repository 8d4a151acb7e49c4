from __future__ import annotations

from pathlib import Path

import pytest

from tests.attnres_compile.model.optimizer_ranks import KINDS, train
from tests.processes import run_ranks

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_decide_alike(kind: str, tmp_path: Path) -> None:
    run_ranks(train, 2, str(tmp_path / "store"), kind)
