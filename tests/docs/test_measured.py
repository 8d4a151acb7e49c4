"""The section of kernels.md about GPUs: made from records that are dropped into a folder; its commands can be run."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from attnres_compile.cli import main as attnres
from attnres_compile.models.presets import PRESETS
from kernels.benchmarks import command_line as benchmarks
from kernels.benchmarks.against_peers.arms.generated import kernel_arms
from kernels.benchmarks.against_peers.arms.peers import PEERS
from kernels.benchmarks.against_peers.work import BLOCK, FORWARD, OP, Shape
from kernels.benchmarks.goals.project_goals import DTYPE, INPUT, MODELS, SOURCES, TOKENS, WIDTHS
from tests.kernels.benchmarks.gpu_records import GPU, GRID, cell, kernel_record, model_record

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The parts of kernels.md."""
    monkeypatch.syspath_prepend(str(DOCS))
    before = set(sys.modules)
    yield importlib.import_module("parts.kernels")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("parts", "benchmark_records", "regenerate"):
            del sys.modules[name]


def drop(page: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, **records: dict) -> None:
    """Let the pages see ``records`` only."""
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    monkeypatch.setattr(importlib.import_module("benchmark_records"), "BENCHMARKS", folder)


def test_records_make_tables_and_pictures(page, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    kernels = kernel_record([cell(BLOCK, FORWARD, GRID[0], forward=0.8)])
    drop(page, monkeypatch, tmp_path, one=kernels, two=model_record("llama-3.2-1b"), away=kernel_record(device="cpu"))
    goals = page.goals_on_gpus()
    assert f"**{GPU}**" in goals
    assert re.search(r"block, forward: share .* 80.0 % +\| missed by 5.00 points; 17 not measured", goals)
    assert re.search(r"llama-3.2-1b: training step over plain +\| at most \+2.00 % \| \+2.00 % .* \| reached", goals)
    of_kernels, of_models = page.kernels_on_gpus(), page.models_on_gpus()
    assert "Records: [one.json](benchmarks/one.json) (2026-12-01)" in of_kernels
    assert "| block, forward: T 8192, d 2048, n 2, S 6, bfloat16 | kernels, direct" in of_kernels
    assert "- away: unsupported, not installed" in of_kernels
    assert "Records: [two.json](benchmarks/two.json) (2026-12-01)" in of_models
    assert "training step [ms]" in of_models
    shown = re.findall(r"\]\(pictures/(\S+)\.svg\)", of_kernels + of_models)
    assert shown == ["measured-toy-gpu-block", "measured-toy-gpu-llama-3.2-1b-bfloat16-4x2048"]
    drawn = page.measured()
    assert list(drawn) == shown
    assert all(text.startswith("<?xml") for text in drawn.values())


@pytest.mark.parametrize("records", [{}, {"cpu": kernel_record(device="cpu"), "model": model_record(device="cpu")}])
def test_without_a_record_of_a_gpu_the_page_says_so(page, monkeypatch, tmp_path, records):
    drop(page, monkeypatch, tmp_path, **records)
    goals, of_kernels, of_models = page.goals_on_gpus(), page.kernels_on_gpus(), page.models_on_gpus()
    for text in (goals, of_kernels, of_models):
        assert text.startswith("Not measured yet: no ")
    assert goals.count("not measured |") == goals.count("at least") + goals.count("at most")
    assert "timeout 270 python -m kernels.benchmarks peers --level block" in of_kernels
    assert all(f"attnres bench model {name} " in of_models for name in MODELS)
    assert page.measured() == {}


def test_regenerating_writes_the_page_and_the_pictures(page, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    drop(page, monkeypatch, tmp_path, two=model_record())
    regenerate = importlib.import_module("regenerate")
    monkeypatch.setattr(regenerate, "DOCS", tmp_path)
    monkeypatch.setattr(regenerate, "PICTURES", {})
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "kernels.py").touch()
    (tmp_path / "kernels.md").write_text("<!-- generated: models_on_gpus -->\n<!-- end -->\n")
    monkeypatch.setattr(sys, "argv", ["regenerate.py"])
    assert regenerate.main() == 0
    assert "(pictures/measured-toy-gpu-gpt2-2048-bfloat16-4x2048.svg)" in (tmp_path / "kernels.md").read_text()
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == [
        "measured-toy-gpu-gpt2-2048-bfloat16-4x2048.svg"
    ]
    monkeypatch.setattr(sys, "argv", ["regenerate.py", "--check"])
    assert regenerate.main() == 0


def parse(words: list[str]) -> argparse.Namespace:
    if words[0] == "attnres":
        return attnres.build_parser().parse_args(words[1:])
    assert words[:3] == ["python", "-m", "kernels.benchmarks"]
    return benchmarks.build_parser().parse_args(words[3:])


def test_the_commands_of_the_page_can_be_run_and_measure_every_goal(page):
    section = (DOCS / "kernels.md").read_text().partition("### Measuring within 30 minutes\n")[2]
    lines = re.search(r"```sh\n(.*?)```", section, re.DOTALL)[1].splitlines()
    limits = [int(line.split()[1]) for line in lines if line.startswith("timeout ")]
    assert sum(limits) <= 28 * 60
    assert max(limits) < 600
    parsed = [parse(shlex.split(line)[2:]) for line in lines[1:-1]]
    assert len({one.json for one in parsed}) == len(parsed)
    kernels = [one for one in parsed if hasattr(one, "level")]
    models = [one for one in parsed if hasattr(one, "model")]
    assert {one.level for one in kernels} == {OP, BLOCK}
    for one in kernels:
        grid = tuple(one.tokens), tuple(one.width), tuple(one.sources), tuple(one.dtype), one.direction, one.device
        assert grid == (TOKENS, WIDTHS, SOURCES, (DTYPE,), None, "cuda")
        own = kernel_arms(Shape(one.level, 8192, 2048, 2, 6 if one.level == BLOCK else 1, DTYPE), "eager")
        names = [arm.name for arm in own] + [peer.name for peer in PEERS if one.peers]
        assert [part for part in one.arms if not any(part in name for name in names)] == []
        assert all(not one.peers or any(part in peer.name for part in one.arms) for peer in PEERS)
    assert all(one.budget < limit for one, limit in zip(kernels, (limits[1], limits[2], limits[-1]), strict=True))
    assert tuple(one.model for one in models) == MODELS
    for one in models:
        assert one.model in PRESETS
        assert ([one.batch, one.seq], one.dtype, one.device) == (INPUT, DTYPE, "cuda")
        assert set(one.workload) == {"training", "prefill", "decode"}
        assert getattr(torch, one.dtype) is torch.bfloat16
