"""What reads are bound to, and the reason that is logged."""

from __future__ import annotations

import pytest
from torch import fx

from attnres_passes.ir.config import AttnResConfig
from attnres_passes.ir.plan import Plan
from attnres_passes.schedule.provider import choose_provider


def test_a_graph_without_reads_is_not_said_to_be_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATTNRES_KERNELS", raising=False)
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    choice = choose_provider(fx.GraphModule({}, graph), Plan((), (), AttnResConfig()))
    assert choice.why == "no read is here to bind"
