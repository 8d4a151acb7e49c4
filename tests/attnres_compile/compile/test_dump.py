"""A compilation leaves plan and graphs in torch's structured trace, and tlparse shows them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attnres_passes.ir.plan import Plan

ROOT = Path(__file__).resolve().parents[3]

COMPILE = """
import torch
from tests.end_to_end.models import PreNorm, tokens
model = PreNorm()
torch.compile(model, backend="attnres", options={"inner": "eager", "num_blocks": 2})(tokens())
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what tlparse makes of a compilation."""
    tlparse = shutil.which("tlparse", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if tlparse is None:
        if os.environ.get("CI"):
            pytest.fail("tlparse is not installed, and on continuous integration this test must run")
        pytest.skip("needs the package tlparse, which is not installed")
    trace, out = tmp_path_factory.mktemp("trace"), tmp_path_factory.mktemp("report") / "out"
    paths = [str(path) for path in (ROOT, ROOT / "passes", ROOT / "kernels")]
    environment = {**os.environ, "TORCH_TRACE": str(trace), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [log] = trace.glob("*.log")
    command = [tlparse, "--strict", "--no-browser", "-o", str(out), str(log)]
    parsed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert parsed.returncode == 0, parsed.stderr
    return out


def artifact(report: Path, name: str) -> str:
    """The text of the one file that tlparse wrote for an artifact."""
    [found] = [path for path in report.rglob(f"{name}_*") if path.suffix in (".txt", ".json")]
    assert found.name in (report / "index.html").read_text(encoding="utf-8")
    return found.read_text(encoding="utf-8")


def test_the_plan_is_in_the_trace(report: Path) -> None:
    plan = Plan.from_dict(json.loads(artifact(report, "attnres_plan")))
    assert plan.config.num_blocks == 2
    assert [len(stream.writes) for stream in plan.streams] == [3]


@pytest.mark.parametrize(
    ("level", "holds"),
    [
        ("captured", "layer_norm("),
        ("rewritten", "torch.ops.attnres.depth_attention("),
        ("scheduled", "attnres: schedule"),
        ("lowered", "attnres: read"),
    ],
)
def test_the_graphs_are_in_the_trace(report: Path, level: str, holds: str) -> None:
    text = artifact(report, f"attnres_{level}")
    assert text.startswith("def forward(")
    assert holds in text
    assert ("depth_attention" in text) == (level == "rewritten")


def test_the_schedule_is_in_the_trace(report: Path) -> None:
    assert "bound to " in artifact(report, "attnres_schedule")
